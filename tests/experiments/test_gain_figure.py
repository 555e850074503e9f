"""Gains per method, and what each method reaches at its cost."""

import re

import pytest
from matplotlib.figure import Figure
from PIL import Image

from d2kd.config import ALONE
from d2kd.experiments import TEACHER, stretched
from d2kd.experiments.ceiling_figure import by_length, plot_ceiling
from d2kd.experiments.gain_figure import plot_gains
from tests.experiments.small import result


def runs_of(config="fcos", methods=("bckd", "crosskd")):
    runs = [result(ALONE, seed, 30.0 + seed, config=config) for seed in (0, 1)]
    for number, method in enumerate(methods, 1):
        runs += [result(method, seed, 30.0 + seed + number * (1 + seed), config=config) for seed in (0, 1)]
    return [*runs, result(stretched(methods[0]), 0, 33.5, config=config), result(TEACHER, 0, 60.0, config=config)]


def test_a_row_for_each_config_with_pairs(tmp_path):
    heights = []
    for configs in (["fcos"], ["fcos", "gfl"]):
        runs = [run for config in configs for run in runs_of(config)] + [result(ALONE, 0, 1.0, config="lonely")]
        assert plot_gains(tmp_path / "gains.png", runs)
        heights.append(Image.open(tmp_path / "gains.png").height)
    assert heights[1] > 1.7 * heights[0]
    # A teacher of other metrics is in no panel.
    assert plot_gains(tmp_path / "gains.png", [*runs_of()[:-1], result(TEACHER, 0, 0.0, values={"bbox/AP50": 80.0})])
    assert not plot_gains(tmp_path / "none.png", [result(ALONE, 0, 30.0), result("bckd", 1, 31.0)])
    assert not (tmp_path / "none.png").exists()


TEST, REPORTED = "fcos_val", "fcos_test"


def lengths(config="fcos", **changes):
    return [
        result(
            method, seed, 30.0 + count + seed, config=config, max_iter=400 * count, cost_seconds=50.0 * count, **changes
        )
        for count in (4, 1, 2)
        for method in (ALONE, "bckd")
        for seed in (0, 2)
    ]


def test_the_points_of_a_line_are_means_over_seeds():
    runs = [*lengths(), result(stretched("bckd"), 0, 40.0), result(TEACHER, 0, 60.0)]
    runs.append(result("crosskd", 0, 31.0, cost_seconds=None))
    points = by_length(runs)
    assert points.keys() == {ALONE, "bckd"}
    assert points["bckd"] == [(400 * n, 50.0 * n, 31.0 + n, pytest.approx(2**0.5)) for n in (1, 2, 4)]
    with pytest.raises(ValueError, match="fcos has two runs of bckd, seed 2, 800 iterations: draw results"):
        by_length([*runs, result("bckd", 2, 50.0, max_iter=800)])


@pytest.fixture
def titles(tmp_path, monkeypatch):
    """Draws runs; returns the titles of its panels, a list for each row."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))

    def draw(runs):
        plot_ceiling(tmp_path / "ceiling.png", runs)
        rows = {}
        for panel in figures[-1].axes:
            rows.setdefault(panel.get_subplotspec().rowspan.start, []).append(panel.get_title(loc="left"))
        return list(rows.values())

    return draw


def test_reported_data_have_a_panel_of_their_own(titles):
    # A cached evaluation of other data says nothing of the values.
    runs = [*lengths(reported={REPORTED: {"bbox/AP": 1.0}}), *lengths("gfl", values_on=REPORTED)]
    assert titles(runs) == [[f"fcos, on {TEST}"], [f"gfl, on {TEST}", f"gfl, on {REPORTED}"]]
    with pytest.raises(ValueError, match="nothing to draw"):
        titles([result(ALONE, 0, 30.0, cost_seconds=None)])


@pytest.mark.parametrize(
    ("changes", "found", "field"),
    [
        ({"metric": "bbox/AP50"}, "metric 'bbox/AP' and 'bbox/AP50'", "train.best_metric"),
        ({"device": "cuda"}, "device 'cpu' and 'cuda'", "train.device"),
        ({"values_on": REPORTED}, f"values on '{TEST}' and '{REPORTED}'", "--report"),
    ],
)
def test_what_shares_no_axis_is_refused(titles, changes, found, field):
    longer = [{**run, **changes, "max_iter": 10 * run["max_iter"]} for run in lengths()]
    said = f"fcos has results with {found}, expected one: draw a figure of each, or run d2kd compare again with one "
    with pytest.raises(ValueError, match=re.escape(f"{said}{field}.")):
        titles([*lengths(), *longer])
    titles([*lengths(), *({**run, "config": "gfl"} for run in longer)])


def test_two_configs_of_one_name_share_no_line(titles):
    """The longer schedules of the one would seem to be the other's."""
    short, long = lengths(config_file="cards/fcos.py"), [{**run, "max_iter": 9999} for run in lengths()[-4:]]
    with pytest.raises(ValueError, match=r"fcos has results of cards/fcos.py and of digits/fcos.py: draw a figure of "):
        titles([*short, *({**run, "config_file": "digits/fcos.py"} for run in long)])
    same = [{**run, "config_file": "configs/cards/fcos.py"} for run in long]
    assert titles([*short, *same, result(TEACHER, 0, 60.0)]) == [[f"fcos, on {TEST}"]]
