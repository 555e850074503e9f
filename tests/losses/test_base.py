"""What every distillation loss refuses, and what the registry holds."""

import pytest

from d2kd.losses import LOSS_REGISTRY, BinaryClassificationKD, DistillationLoss, IoULocalizationKD


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(source="teacher"), "source is 'teacher', expected one of student, crossed"),
        (dict(region="positive"), "region is 'positive', expected one of all_locations, gap, positives"),
        (dict(normalizer="mean"), "normalizer is 'mean', expected one of positives, local_positives, ema"),
        (dict(weight=-1), "weight is -1, expected a number >= 0"),
        (dict(weight=float("nan")), "weight is nan, expected a number >= 0"),
        (dict(weight="1"), "weight is '1', expected a number >= 0"),
        (dict(tail=-1), "tail is -1, expected a number of tower blocks >= 0"),
    ],
)
@pytest.mark.parametrize("loss", [BinaryClassificationKD, IoULocalizationKD])
def test_arguments_that_mean_nothing_are_named(loss, kwargs, message):
    with pytest.raises(ValueError, match=f"{loss.__name__}.{message}"):
        loss(**kwargs)


def test_an_unknown_iou_is_named():
    with pytest.raises(ValueError, match="IoULocalizationKD.iou_type is 'diou', expected one of giou, iou"):
        IoULocalizationKD(iou_type="diou")


def test_registered_losses_are_distillation_losses_of_one_task():
    registered = dict(LOSS_REGISTRY)
    assert registered == {"BinaryClassificationKD": BinaryClassificationKD, "IoULocalizationKD": IoULocalizationKD}
    assert all(issubclass(loss, DistillationLoss) and loss.task in ("cls", "box") for loss in registered.values())


def test_a_printed_model_shows_what_each_term_is():
    assert repr(BinaryClassificationKD(weight=0.4, source="crossed", tail=2)) == (
        "BinaryClassificationKD(weight=0.4, source=crossed, tail=2, region=all_locations, normalizer=positives, "
        "skip_empty_levels=False, beta=1.0, detach_gap=False)"
    )
    assert repr(IoULocalizationKD(region="gap")) == (
        "IoULocalizationKD(weight=1.0, source=student, region=gap, normalizer=positives, skip_empty_levels=False, "
        "iou_type=giou)"
    )
