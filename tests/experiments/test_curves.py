"""What a run has logged, and its metric over its schedule."""

import json
import math

import numpy as np
import pytest

from d2kd.experiments.curves import COSTS, CurvePoint, align, curve, final_metrics, last_quarter, read_metrics


def write_metrics(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_metrics_are_by_finished_iterations_and_a_resume_replaces_what_it_repeats(tmp_path):
    file = tmp_path / "metrics.json"
    write_metrics(file, [{"iteration": 19, "x": 1}, {"iteration": 39, "x": 2}])
    with open(file, "a") as f:
        f.write('{"iteration": 59, "x"')  # killed here
        f.write('\n{"iteration": 39, "x": 3}\n{"iteration": 59, "x": 4}\n{"iteration": 60, "bbox/AP": NaN}\n')
    records = read_metrics(file, max_iter=60)
    assert list(records) == [20, 40, 60]
    assert records[40]["x"] == 3
    assert records[60]["x"] == 4 and math.isnan(records[60]["bbox/AP"])
    assert read_metrics(tmp_path / "none.json", 60) == {}


def test_curve_interpolates_the_cost_between_logs(tmp_path):
    file = tmp_path / "metrics.json"
    ends = [{"iteration": 19, "cost/cpu_seconds": 2.0}, {"iteration": 24, "bbox/AP": 5.0}]
    ends += [{"iteration": 39, "cost/cpu_seconds": 6.0}, {"iteration": 40, "bbox/AP": 9.0, "cost/cpu_seconds": 6.0}]
    write_metrics(file, ends)
    which = "bbox/AP", COSTS["cpu"]
    assert curve(read_metrics(file, 40), *which) == [CurvePoint(25, 3.0, 5.0), CurvePoint(40, 6.0, 9.0)]
    write_metrics(file, [{"iteration": 40, "bbox/AP": 9.0}])
    assert curve(read_metrics(file, 40), *which) == [CurvePoint(40, None, 9.0)]
    assert curve(read_metrics(file, 40), "bbox/AP50", COSTS["cpu"]) == []


def test_final_metrics_are_what_was_evaluated_after_the_last_step(tmp_path):
    file = tmp_path / "metrics.json"
    write_metrics(file, [{"iteration": 38, "speed": 2.0}, {"iteration": 39, "total_loss": 1.0, "kd/x": 0.5}])
    assert final_metrics(file, 40) == {}
    with open(file, "a") as f:
        f.write('{"iteration": 40, "speed": 3.0, "bbox/AP": 9.0, "cost/cpu_seconds": 6.0, "cost/wall_seconds": 9.0}')
    assert final_metrics(file, 40) == {"speed": 3.0, "bbox/AP": 9.0}


@pytest.mark.parametrize(
    "points, added",
    [
        ([(500, 10.0), (750, 20.0), (1000, 26.0)], 6.0),  # evaluated at three quarters
        ([(700, 10.0), (800, 20.0), (1000, 26.0)], 11.0),  # or around them: 15.0 at 750
        ([(800, 20.0), (1000, 26.0)], None),
        ([(500, 10.0), (750, math.nan), (1000, 26.0)], None),  # no object of the class, or of the size
    ],
)
def test_last_quarter(points, added):
    assert last_quarter([CurvePoint(i, None, ap) for i, ap in points]) == added


def test_align_takes_the_evaluations_that_all_runs_have():
    long = [CurvePoint(125 * n, 10.0 * n, float(n)) for n in range(1, 9)]
    longer = [CurvePoint(min(126 * n, 1003), 11.0 * n, 2.0 * n) for n in range(1, 9)]
    without = [point for point in long if point.iteration != 375]  # it was killed before that evaluation
    table = align([longer, without])
    left = [0, 1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(table, [[list(longer[n]) for n in left], [list(long[n]) for n in left]])
    np.testing.assert_array_equal(align([without]), [[list(point) for point in without]])
    odd = [CurvePoint(300, None, 1.0), CurvePoint(1000, None, 2.0)]
    np.testing.assert_array_equal(align([long, odd])[:, :, 2], [[8.0], [2.0]])  # the end, if nothing else
