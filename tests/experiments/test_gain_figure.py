"""Gains per method, and what each method reaches at its cost."""

import pytest
from PIL import Image

from d2kd.config import ALONE
from d2kd.experiments import TEACHER, stretched
from d2kd.experiments.ceiling_figure import by_length, plot_ceiling
from d2kd.experiments.gain_figure import paired_gains, plot_gains
from tests.experiments.small import result


def runs_of(config="fcos", methods=("bckd", "crosskd")):
    runs = [result(ALONE, seed, 30.0 + seed, config=config) for seed in (0, 1)]
    for number, method in enumerate(methods, 1):
        runs += [result(method, seed, 30.0 + seed + number * (1 + seed), config=config) for seed in (0, 1)]
    return [*runs, result(stretched(methods[0]), 0, 33.5, config=config), result(TEACHER, 0, 60.0, config=config)]


def test_gains_are_over_the_same_seed():
    runs = [*runs_of(), result("bckd", 7, 90.0), result("crosskd", 1, 0.0, values={"bbox/AP": None})]
    assert paired_gains(runs, "bckd") == [1.0, 2.0]  # seed 7 has no partner
    assert paired_gains(runs, "crosskd") == [2.0, 4.0]
    assert paired_gains(runs, stretched("bckd")) == [3.5]


def test_a_row_for_each_config_with_pairs(tmp_path):
    heights = []
    for configs in (["fcos"], ["fcos", "gfl"]):
        runs = [run for config in configs for run in runs_of(config)] + [result(ALONE, 0, 1.0, config="lonely")]
        assert plot_gains(tmp_path / "gains.png", runs)
        heights.append(Image.open(tmp_path / "gains.png").height)
    assert heights[1] > 1.7 * heights[0]
    assert not plot_gains(tmp_path / "none.png", [result(ALONE, 0, 30.0), result("bckd", 1, 31.0)])
    assert not (tmp_path / "none.png").exists()


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


def test_reported_data_have_a_panel_of_their_own(tmp_path):
    sizes = []
    for runs in (lengths(), lengths(reported={"bbox/AP": 1.0}), [*lengths(), *lengths("gfl")]):
        plot_ceiling(tmp_path / "ceiling.png", runs)
        sizes.append(Image.open(tmp_path / "ceiling.png").size)
    assert sizes[1][0] > 1.5 * sizes[0][0] and sizes[1][1] == sizes[0][1]
    assert sizes[2][0] == sizes[0][0] and sizes[2][1] > 1.5 * sizes[0][1]
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_ceiling(tmp_path / "none.png", [result(ALONE, 0, 30.0, cost_seconds=None)])
