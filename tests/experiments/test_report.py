"""Tables, and what stands below them."""

from d2kd.experiments import ALONE, TEACHER, report, stretched
from d2kd.experiments.statistics import summarize
from tests.experiments.small import result


def test_markdown_has_what_exists():
    runs = [result(TEACHER, 0, 60.0, cpu_seconds=None), result(ALONE, 0, 30.0), result(ALONE, 1, 31.0)]
    runs += [result(stretched("bckd"), 0, 32.0, max_iter=1200), result(stretched("bckd"), 1, 33.5, max_iter=1210)]
    lines = report.to_markdown(summarize(runs)).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    assert "APs" in table[0] and "APm" not in table[0] and "APl" not in table[0]
    assert [row["model"] for row in table] == ["teacher", "student alone", "student alone, at bckd's cost"]
    assert table[0]["AP"] == "60.0" and table[0]["training CPU s"] == "-" and table[0]["gain"] == "-"
    assert table[1]["AP"] == "30.5 ± 0.7" and table[1]["iterations"] == "800"
    assert table[2]["gain"] == "+2.2 ± 0.4" and table[2]["iterations"] == "1200-1210" and table[2]["seeds"] == "2"


def test_notes_say_how_finished_the_schedule_was_and_where_figures_come_from():
    state = {"commit": "0123456789abcdef", "dirty": True}
    runs = [result(ALONE, 0, 32.0, git=state), result("bckd", 0, 33.0, git={**state, "dirty": False})]
    text = "\n".join(report.notes(runs))
    assert "added +8.0 AP (val) to the student alone" in text
    assert "0123456789 with uncommitted changes" in text and "torch 2" in text
    assert "added" not in "\n".join(report.notes(runs[1:]))
