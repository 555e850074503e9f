"""d2kd plot."""

import json
from pathlib import Path

import pytest
from PIL import Image

from d2kd.cli import plot
from d2kd.cli.plot import main
from d2kd.config import ALONE
from d2kd.experiments.curves import read_metrics
from tests.experiments.small import result


def write(folder, *, terms=("a", "b"), cost=True, steps=100, period=20):
    """The metrics.json of a run, as Detectron2's writer has it."""
    folder.mkdir()
    lines = []
    for step in range(period - 1, steps, period):
        line = {"iteration": step, "lr": 0.1, "total_loss": 3.0 + len(terms), "loss_cls": 3.0}
        line |= {f"loss_kd_{name}": 1.0 for name in terms}
        if step == period - 1:
            line |= {f"kd/{name}_gradient_share": 0.5 for name in terms}
        if cost:
            line["cost/wall_seconds"] = (step + 1) / 10
        lines.append(line)
    lines.append({"iteration": steps, "bbox/AP": 30.0, **({"cost/wall_seconds": steps / 10} if cost else {})})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.json").write_text(text + '{"iteration": 4')  # half a line of a run that was killed
    return folder


def test_one_run(tmp_path, capsys):
    folder = write(tmp_path / "run")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "plot.png")
    assert Image.open(folder / "plot.png").size[1] > 800  # four rows


def test_several_runs_and_a_file(tmp_path):
    runs = [write(tmp_path / "one"), write(tmp_path / "alone", terms=(), cost=False)]
    output = tmp_path / "new" / "both.png"
    assert main([str(runs[0]), str(runs[1] / "metrics.json"), "--output", str(output)]) == 0
    assert Image.open(output).size[0] > 1000  # four columns


def test_two_files_of_one_folder_are_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "run"))
    other = write(tmp_path / "other")
    Path("old.json").write_bytes(Path("metrics.json").read_bytes())
    drawn = []
    monkeypatch.setattr(plot, "plot_runs", lambda _, runs: drawn.append(list(runs)))
    assert main(["metrics.json", "old.json"]) == main([".", str(other)]) == 0
    assert drawn == [["metrics.json", "old.json"], ["run", "other"]]


def test_without_costs_there_is_one_column_and_without_terms_there_are_fewer_rows(tmp_path):
    sizes = []
    for index, kwargs in enumerate(({}, {"cost": False}, {"terms": ()})):
        folder = write(tmp_path / str(index), **kwargs)
        assert main([str(folder)]) == 0
        sizes.append(Image.open(folder / "plot.png").size)
    assert sizes[1][0] < sizes[0][0] and sizes[2][1] < sizes[0][1]


def test_each_term_has_a_row(tmp_path):
    heights = []
    for count in (1, 8):
        folder = write(tmp_path / str(count), terms=[f"t{index}" for index in range(count)])
        assert main([str(folder)]) == 0
        heights.append(Image.open(folder / "plot.png").size[1])
    assert heights[1] - heights[0] == pytest.approx(7 * 1.9 * 110, abs=2)


def test_outputs_of_compare(tmp_path, capsys):
    for count in (1, 2, 4):
        runs = [
            result(method, seed, 30.0 + count, cost_seconds=50.0 * count, max_iter=400 * count)
            for method in (ALONE, "bckd")
            for seed in (0, 1)
        ]
        (tmp_path / f"x{count}").mkdir()
        (tmp_path / f"x{count}" / "results.json").write_text(json.dumps({"runs": runs}))
    folders = [str(tmp_path / f"x{count}") for count in (1, 2, 4)]
    assert main([*folders, "--output", str(tmp_path / "ceiling.png")]) == 0
    assert Image.open(tmp_path / "ceiling.png").size[0] > 500
    assert main([*folders, str(write(tmp_path / "run"))]) == 2
    assert f"{folders[0]} is an output of d2kd compare and {tmp_path / 'run'} a run" in capsys.readouterr().err
    (tmp_path / "x1" / "results.json").write_text(json.dumps({"runs": [{"detector": "gfl"}]}))
    assert main(folders) == 2
    assert f"{tmp_path / 'x1' / 'results.json'} is no results.json of d2kd compare" in capsys.readouterr().err


def test_the_ceiling_of_docs_is_drawn(tmp_path):
    results = Path(__file__).parents[2] / "docs/results"
    folders = [str(results / name) for name in ("cards", "cards_4000", "cards_8000")]
    assert main([*folders, "--output", str(tmp_path / "ceiling.png")]) == 0
    there = Image.open(results / "cards/ceiling.png")
    assert Image.open(tmp_path / "ceiling.png").size == there.size


def test_the_length_of_a_run_is_read_off_its_last_line(tmp_path):
    folder = write(tmp_path / "run")
    records = read_metrics(folder / "metrics.json")
    assert list(records) == [20, 40, 60, 80, 100]
    assert records[100]["bbox/AP"] == 30 and records[100]["total_loss"] == 5
    running = tmp_path / "running.json"
    running.write_text("".join(x + "\n" for x in (folder / "metrics.json").read_text().splitlines()[:3]))
    assert list(read_metrics(running)) == [20, 40, 60]


def test_what_cannot_be_drawn_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path} has no metrics.json" in capsys.readouterr().err
    folder = write(tmp_path / "run")
    assert main([str(folder), str(folder)]) == 2
    assert "named twice" in capsys.readouterr().err
    (folder / "metrics.json").write_text('{"iteration": 3, "time": 1.0}\n')
    assert main([str(folder)]) == 2
    assert "nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[1, 2]\n5\nnull\n{"total_loss": 1.0}\n{"iteration": "0", "lr": 1.0}', "nothing to draw"),
        (b"\xbc\xff\x00", "nothing to draw"),
        ('{"iteration": 0, "total_loss": "much"}', "has total_loss = 'much', expected numbers"),
    ],
)
def test_a_damaged_metrics_json(lines, said, tmp_path, capsys):
    (tmp_path / "metrics.json").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    assert main([str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (None, "has no runs: there is nothing to draw."),
        ({"device": "tpu"}, "is no results.json of d2kd compare"),
        ({"values": None}, "is no results.json of d2kd compare"),
        ({"cost_seconds": "long"}, "is no results.json of d2kd compare"),
        ({"values": {"bbox/AP": float("nan")}}, "None of these runs has a cost and a final metric"),
    ],
)
def test_a_damaged_results_json(changes, said, tmp_path, capsys):
    file = tmp_path / "results.json"
    runs = [] if changes is None else [{**result(ALONE, 0, 30.0), **changes}]
    file.write_text(json.dumps({"runs": runs}))
    assert main([str(file)]) == 2
    assert said in capsys.readouterr().err
    file.write_text(file.read_text()[:-3])
    assert main([str(file)]) == 2
    assert f"{file} is no JSON" in capsys.readouterr().err
