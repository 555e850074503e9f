"""Tables, and what stands below them."""

from d2kd.config import ALONE
from d2kd.experiments import TEACHER, report, stretched
from tests.experiments.small import result


def test_markdown_has_what_exists():
    unknown = dict.fromkeys(("cost_seconds", "max_iter"))
    runs = [result(TEACHER, None, 60.0, **unknown), result(ALONE, 0, 30.0), result(ALONE, 1, 31.0)]
    runs += [result(stretched("bckd"), 0, 32.0, max_iter=1200), result(stretched("bckd"), 1, 33.5, max_iter=1210)]
    lines = report.to_markdown(runs).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    assert "APs" in table[0] and "APm" not in table[0] and "bbox/AP-seven" not in table[0]
    assert [row["model"] for row in table] == ["teacher", "student alone", "student alone, at the cost of bckd"]
    assert (
        table[0]["AP"] == "60.0"
        and table[0]["training CPU s"] == table[0]["gain"] == table[0]["seeds"] == table[0]["iterations"] == "-"
    )
    assert table[1]["AP"] == "30.5 ± 0.7" and table[1]["iterations"] == "800"
    assert table[2]["gain"] == "+2.2 ± 0.4" and table[2]["iterations"] == "1200-1210" and table[2]["seeds"] == "2"


def test_metrics_of_any_evaluator_are_a_table(capsys):
    metrics = {"found/share": 0.25, "speed": 120.0, "found/none": None}
    changes = {"metric": "found/share", "values": metrics, "device": "cuda"}
    runs = [result(ALONE, 0, 0.0, **changes), result("bckd", 0, 0.0, **{**changes, "values": {"found/share": 0.375}})]
    header, _, alone, bckd = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in report.to_markdown(runs).splitlines()
    )
    shown = [name for name in header if name not in ("config", "model", "seeds", "iterations", "parameters", "s/it")]
    assert shown == ["found/share", "gain", "p (paired)", "speed", "training s on a GPU"]
    row = dict(zip(header, bckd, strict=True))
    assert (row["found/share"], row["gain"], row["speed"]) == ("0.375", "+0.125", "-")
    assert dict(zip(header, alone, strict=True))["speed"] == "120.0"


def test_notes_say_how_finished_the_schedule_was_and_where_figures_come_from():
    state = {"commit": "0123456789abcdef", "dirty": True}
    runs = [result(ALONE, 0, 32.0, git=state), result("bckd", 0, 33.0, git={**state, "dirty": False})]
    text = "\n".join(report.notes(runs))
    assert "added +8.0 AP on dataloader.test to the student alone" in text
    assert "0123456789 with uncommitted changes" in text and "torch 2" in text
    assert "added" not in "\n".join(report.notes(runs[1:]))
