"""Tables, and what stands below them."""

import json

from d2kd.config import ALONE
from d2kd.experiments import TEACHER, report, stretched
from tests.experiments.small import experiment, result


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


def test_a_gain_of_fewer_pairs_than_seeds_says_so():
    runs = [result(ALONE, seed, 30.0 + seed) for seed in (0, 1)]
    runs += [result("bckd", seed, 36.0 + seed) for seed in (0, 1, 2)]
    runs += [result("crosskd", seed, 37.0 + seed) for seed in (0, 1)]
    runs += [result("tid", 0, 38.0), result("tid", 1, 0.0, values={"bbox/AP": None}), result("ld", 2, 40.0)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.to_markdown(runs).splitlines()]
    seeds, gain = rows[0].index("seeds"), rows[0].index("gain")
    assert {row[1]: (row[seeds], row[gain]) for row in rows[2:]} == {
        "student alone": ("2", "-"),
        "bckd": ("3", "+6.0 ± 0.0 (2 pairs)"),
        "crosskd": ("2", "+7.0 ± 0.0"),
        "tid": ("2", "+8.0 (1 pair)"),
        "ld": ("1", "-"),
    }
    note = "Without AP, and left out of its means and gains: fcos tid seed 1."
    assert note in report.notes(runs) and note not in report.notes(runs[:-2])


def test_a_report_names_the_files_that_it_wrote(tmp_path, monkeypatch):
    runs = [result(ALONE, 0, 30.0), result("bckd", 0, 33.0)]
    monkeypatch.setattr(report, "plot_curves", lambda *_: None)
    for found, expected in (
        (runs, ["results.md", "results.json", "curves.png", "gains.png"]),
        (runs[:1], ["results.md", "results.json", "curves.png"]),  # whose earlier gains.png is of no pairs
        ([], []),
    ):
        monkeypatch.setattr(report, "collect", lambda _, found=found: (found, 0))
        (tmp_path / "plot.png").touch()  # another command's
        assert report.write_report(experiment(tmp_path), "d2kd compare")[1] == expected
        assert (tmp_path / "gains.png").exists() == (found == runs)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == {"command": "d2kd compare", "runs": runs[:1]}


def test_notes_say_how_finished_the_schedule_was_and_where_figures_come_from():
    state = {"commit": "0123456789abcdef", "dirty": True}
    runs = [result(ALONE, 0, 32.0, git=state), result("bckd", 0, 33.0, git={**state, "dirty": False})]
    text = "\n".join(report.notes(runs))
    assert "added +8.0 AP on fcos_val to the student alone" in text
    assert "0123456789 with uncommitted changes" in text and "torch 2" in text
    assert "added" not in "\n".join(report.notes(runs[1:]))
