"""Methods compared over paired seeds."""

import math
from statistics import stdev

import pytest

from d2kd.config import ALONE
from d2kd.experiments import stretched
from d2kd.experiments.statistics import paired_gains, paired_p_value, summarize
from tests.experiments.small import result


def test_gains_are_paired_by_seed():
    runs = [result(ALONE, seed, ap) for seed, ap in [(0, 30.0), (1, 34.0), (2, 32.0)]]
    # Seed 3 has no partner: it counts for the mean, not for the gain.
    runs += [result("crosskd", seed, ap) for seed, ap in [(0, 35.0), (1, 38.0), (2, 38.0), (3, 90.0)]]
    alone, crosskd = summarize(runs)
    assert alone.gain is None and alone.p_value is None
    assert alone.values["bbox/AP"] == (32.0, 2.0)
    assert crosskd.seeds == (0, 1, 2, 3) and crosskd.paired_seeds == 3
    assert crosskd.values["bbox/AP"][0] == pytest.approx(201 / 4)
    assert crosskd.gain == (pytest.approx(5.0), pytest.approx(stdev([5, 4, 6])))
    # t = 5 / (1 / sqrt 3) = 8.66 with two degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    t = 5 * math.sqrt(3)
    assert crosskd.p_value == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert "bbox/APm" not in crosskd.values  # nobody has it


def test_a_run_without_the_metric_is_in_no_pair():
    runs = [result(ALONE, seed, 30.0 + seed) for seed in (0, 1)]
    runs += [result("bckd", 0, 31.0), result("bckd", 1, 0.0, values={"bbox/AP": None}), result("bckd", 7, 90.0)]
    runs += [result(stretched("bckd"), 0, 33.5), result(stretched("bckd"), 1, 0.0, values={"bbox/AP50": 1.0})]
    assert paired_gains(runs, "bckd") == [1.0]
    assert paired_gains(runs, stretched("bckd")) == [3.5]


def test_one_seed_has_no_deviation_and_no_p_value():
    row = summarize([result(ALONE, 0, 30.0), result("bckd", 0, 33.0)])[1]
    assert row.gain == (3.0, None) and row.p_value is None
    assert paired_p_value([2.0, 2.0]) is None


def test_configs_do_not_mix():
    runs = [result(ALONE, 0, 30.0), result("bckd", 0, 33.0, config="retinanet")]
    assert [(row.config, row.gain) for row in summarize(runs)] == [("fcos", None), ("retinanet", None)]
