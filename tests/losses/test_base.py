"""What every distillation loss refuses, and what the registry holds."""

import inspect
import re

import pytest

from d2kd.losses import (
    LOSS_REGISTRY,
    BinaryClassificationKD,
    CenternessKD,
    ChannelWiseKD,
    DistillationLoss,
    DynamicBoxKD,
    DynamicLocalizationDistillation,
    FeatureImitation,
    IoULocalizationKD,
    LocalizationDistillation,
    PearsonFeatureKD,
    SoftmaxClassificationKD,
    TaskIntegrationKD,
    TemperatureFreeClassificationKD,
)
from d2kd.regions import REGION_REGISTRY

TASKS = {
    BinaryClassificationKD: "cls",
    CenternessKD: "centerness",
    ChannelWiseKD: "feature",
    DynamicBoxKD: "box",
    DynamicLocalizationDistillation: "box",
    FeatureImitation: "feature",
    IoULocalizationKD: "box",
    LocalizationDistillation: "box",
    PearsonFeatureKD: "feature",
    SoftmaxClassificationKD: "cls",
    TaskIntegrationKD: "feature",
    TemperatureFreeClassificationKD: "cls",
}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(source="teacher"), "source is 'teacher', expected one of student, crossed"),
        (
            dict(region="positive"),
            "region is 'positive', expected (one of all_locations, .*positives|none: the loss)",
        ),
        (dict(normalizer="mean"), "normalizer is 'mean', expected one of positives, images, .*, none"),
        (dict(weight=-1), "weight is -1, expected a finite number >= 0"),
        (dict(weight=float("nan")), "weight is nan, expected a finite number >= 0"),
        (dict(weight="1"), "weight is '1', expected a finite number >= 0"),
        (dict(tail=-1), "tail is -1, expected a whole number >= 0"),
    ],
)
@pytest.mark.parametrize("loss", list(TASKS))
def test_arguments_that_mean_nothing_are_named(loss, kwargs, message):
    with pytest.raises(ValueError, match=f"{loss.__name__}.{message}"):
        loss(**kwargs)


def test_an_unknown_iou_is_named():
    with pytest.raises(ValueError, match="IoULocalizationKD.iou_type is 'diou', expected one of giou, iou"):
        IoULocalizationKD(iou_type="diou")


def test_registered_losses_are_distillation_losses_of_one_task():
    assert dict(LOSS_REGISTRY) == {loss.__name__: loss for loss in TASKS}
    assert all(issubclass(loss, DistillationLoss) and loss.task == task for loss, task in TASKS.items())


def test_a_printed_model_shows_what_each_term_is():
    assert repr(BinaryClassificationKD(weight=0.4, source="crossed", tail=2)) == (
        "BinaryClassificationKD(weight=0.4, source=crossed, tail=2, region=all_locations, normalizer=positives, "
        "skip_empty_levels=False, beta=1.0)"
    )
    assert repr(IoULocalizationKD(region="gap")) == (
        "IoULocalizationKD(weight=1.0, source=student, region=gap, normalizer=positives, skip_empty_levels=False, "
        "iou_type=giou)"
    )
    assert repr(LocalizationDistillation(normalizer="images", temperature=1.0)) == (
        "LocalizationDistillation(weight=1.0, source=student, region=all_locations, normalizer=images, "
        "skip_empty_levels=False, temperature=1.0, bin_reduction=mean)"
    )
    assert repr(SoftmaxClassificationKD(region="positives")) == (
        "SoftmaxClassificationKD(weight=1.0, source=student, region=positives, normalizer=positives, "
        "skip_empty_levels=False, temperature=2.0, tuned_for_classes=None)"
    )


@pytest.mark.parametrize("loss", list(TASKS))
def test_a_printed_term_shows_every_argument(loss):
    """All but the tail, which only a crossed source has, and a schedule that is not there."""
    arguments = [
        name
        for kind in (DistillationLoss, loss)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("tail", "schedule", "schedule_iters")
    ]
    assert len(arguments) >= 5
    for name in arguments:
        # Of several regions each has a normaliser: region_weak=...
        assert re.search(rf"\b{name}(_\w+)?=", repr(loss())), name


@pytest.mark.parametrize(
    "region, message",
    [
        ({"name": "valuable_localization", "gamma": 7}, "region 'valuable_localization': gamma is 7, expected a"),
        ({"name": "valuable_localization", "topk": [9]}, r"region .*: topk is \(9,\)"),
        ({"name": "inside_box", "weighting": "foo"}, "region 'inside_box': weighting is 'foo'"),
        ({"name": "inside_box", "gamma": 0.5}, "has no option 'gamma'; it has exclude_positives, weighting"),
        ({"gamma": 0.5}, "region is None, expected one of all_locations"),
    ],
)
def test_options_of_a_region_are_looked_at_when_the_loss_is_built(region, message):
    with pytest.raises(ValueError, match=message):
        BinaryClassificationKD(region=region)


def test_every_region_runs_on_the_cell_that_its_options_are_checked_on():
    for name, _ in REGION_REGISTRY:
        region = "task_integration.weak" if name == "task_integration" else name
        assert BinaryClassificationKD(region=region).regions[0].function_key == (name,)
