"""A loss's weight over the iterations."""

import pytest
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    StepParamScheduler,
)

from d2kd.losses import BinaryClassificationKD


def weights(schedule, iters, iterations):
    loss = BinaryClassificationKD(weight=4.0, schedule=schedule, schedule_iters=iters)
    found = []
    for loss.iteration in iterations:
        found.append(loss.scheduled_weight)
    return found


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (ConstantParamScheduler(0.5), [2, 2, 2, 2, 2]),
        (LinearParamScheduler(0.0, 1.0), [0, 1, 2, 4, 4]),  # warm-up
        (CosineParamScheduler(1.0, 0.0), [4, 4 * 0.853553, 2, 0, 0]),
        (MultiStepParamScheduler([1.0, 0.0], num_updates=100, milestones=[50]), [4, 4, 0, 0, 0]),  # stop at 50
    ],
)
def test_a_schedule_scales_the_weight_and_keeps_its_last_value(schedule, expected):
    found = weights(schedule, 100, [0, 25, 50, 100, 100_000])
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[-1] == expected[-1]  # to the last bit


def test_without_a_schedule_the_weight_is_constant():
    assert weights(None, None, [0, 10**6]) == [4, 4]


@pytest.mark.parametrize(
    "schedule, iters, error, message",
    [
        (0.5, 100, TypeError, "schedule is a float, expected a ParamScheduler of fvcore"),
        (ConstantParamScheduler(1.0), None, ValueError, "schedule_iters is None, expected a whole number >= 1"),
        (ConstantParamScheduler(1.0), 0, ValueError, "schedule_iters is 0, expected"),
        (LinearParamScheduler(1.0, -1.0), 9, ValueError, "schedule is -1 at 100% of its iterations"),
        (ConstantParamScheduler(float("nan")), 9, ValueError, "schedule is nan at 0% of its iterations"),
        (StepParamScheduler(2, [1.0, 0.0]), 9, ValueError, "schedule: a StepParamScheduler has no value"),
    ],
)
def test_schedules_that_mean_nothing_are_named(schedule, iters, error, message):
    with pytest.raises(error, match=f"BinaryClassificationKD.{message}"):
        BinaryClassificationKD(schedule=schedule, schedule_iters=iters)


def test_a_printed_loss_names_its_schedule():
    loss = BinaryClassificationKD(schedule=LinearParamScheduler(0.0, 1.0), schedule_iters=500)
    assert "schedule=LinearParamScheduler, schedule_iters=500" in repr(loss)
    assert "schedule" not in repr(BinaryClassificationKD())


def test_a_schedule_that_dips_below_zero_is_named_where_it_does():
    dip = MultiStepParamScheduler([1.0, -1.0, 1.0], num_updates=100, milestones=[30, 60])
    assert weights(dip, 100, [0, 70]) == [4, 4]
    with pytest.raises(ValueError, match="BinaryClassificationKD.schedule is -1 at iteration 40, expected >= 0"):
        weights(dip, 100, [40])
