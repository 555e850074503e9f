"""The presets hold the papers' hyper-parameters."""

import pytest
from detectron2.config import instantiate

from d2kd.losses import (
    BinaryClassificationKD,
    CenternessKD,
    IoULocalizationKD,
    LocalizationDistillation,
    SoftmaxClassificationKD,
)
from d2kd.methods import METHODS, get_losses


def build(method, family):
    return {name: instantiate(node) for name, node in get_losses(method, family).items()}


def where(loss):
    """Region and normaliser of a loss of one term."""
    (term,) = loss.terms
    return term.region, term.normalizer


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_instantiates_to_losses_of_both_branches(method):
    for family in METHODS[method]:
        losses = build(method, family)
        assert {"cls", "box"} <= {loss.task for loss in losses.values()}
        # Normalisers that do not depend on how a batch is spread over ranks; the papers' own are for parity tests.
        allowed = {"positives", "images", "locations", "level_locations", "level_mean"}
        assert {term.normalizer for loss in losses.values() for term in loss.terms} <= allowed
        assert not any(loss.skip_empty_levels for loss in losses.values())


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "GFL", "ATSS"])
def test_bckd(family):
    losses = build("bckd", family)
    cls, loc = losses["bckd_cls"], losses["bckd_loc"]
    assert isinstance(cls, BinaryClassificationKD) and isinstance(loc, IoULocalizationKD)
    assert (cls.weight, cls.beta, cls.detach_gap, cls.source) == (1, 1, False, "student")
    assert (loc.weight, loc.iou_type, loc.source) == (4, "giou", "student")
    assert (where(cls), where(loc)) == (("all_locations", "positives"), ("gap", "positives"))


@pytest.mark.parametrize(
    "family, tail, cls_weight, loc_weight, iou_type",
    [
        ("RetinaNet", 1, 1.0, 1.0, "giou"),
        ("FCOS", 2, 0.4, 0.75, "neg_log_iou"),
        ("ATSS", 1, 1.0, 1.0, "giou"),
    ],
)
def test_crosskd(family, tail, cls_weight, loc_weight, iou_type):
    losses = build("crosskd", family)
    cls, loc = losses["crosskd_cls"], losses["crosskd_loc"]
    assert isinstance(cls, BinaryClassificationKD) and isinstance(loc, IoULocalizationKD)
    assert (cls.weight, cls.beta, cls.detach_gap) == (cls_weight, 1, False)
    assert (loc.weight, loc.iou_type) == (loc_weight, iou_type)
    assert (where(cls), where(loc)) == (("all_locations", "positives"), ("teacher_quality", "positives"))
    assert all(x.source == "crossed" and x.tail == tail for x in (cls, loc))


def test_crosskd_on_gfl_compares_distributions():
    losses = build("crosskd", "GFL")
    cls, loc = losses["crosskd_cls"], losses["crosskd_loc"]
    assert cls.weight == 1 and where(cls) == ("all_locations", "positives")
    assert isinstance(loc, LocalizationDistillation)
    assert (loc.weight, loc.temperature, loc.bin_reduction) == (4, 1, "sum")
    assert where(loc) == ("teacher_quality", "locations")
    assert all(x.source == "crossed" and x.tail == 1 for x in (cls, loc))


def test_crosskd_on_atss_distils_centerness_at_positives():
    loss = build("crosskd", "ATSS")["crosskd_centerness"]
    assert isinstance(loss, CenternessKD)
    assert (loss.weight, loss.source, loss.tail) == (1, "crossed", 1)
    assert where(loss) == ("positives", "positives")


@pytest.mark.parametrize(
    "family, main, vlr, temperature, region, exclude_positives",
    [
        ("GFL", 0.25, 0.25 / 4, 2, "valuable_localization", False),
        ("ATSS", 0.25, 0.15 * 0.25, 2, "valuable_localization", False),
        ("FCOS", 0.25, 0.25 * 0.25, 2, "inside_box", True),
        ("RetinaNet", 5, 0.03 * 5, 8, "valuable_localization", True),
    ],
)
def test_ld(family, main, vlr, temperature, region, exclude_positives):
    losses = build("ld", family)
    assert {name: loss.weight for name, loss in losses.items()} == {
        "ld_main": main,
        "ld_vlr": pytest.approx(vlr),
        "ld_main_kd": 10,
        "ld_vlr_kd": 0,
    }
    for name in ("ld_main", "ld_vlr"):
        loss = losses[name]
        assert isinstance(loss, LocalizationDistillation) and (loss.temperature, loss.bin_reduction) == (10, "mean")
        assert loss.source == "student" and where(loss)[1] == "images"
    for name in ("ld_main_kd", "ld_vlr_kd"):
        loss = losses[name]
        assert isinstance(loss, SoftmaxClassificationKD) and loss.temperature == temperature
        assert loss.source == "student" and where(loss)[1] == "level_locations"
    assert where(losses["ld_main"])[0] == "main" and where(losses["ld_main_kd"])[0] == "positives"
    assert where(losses["ld_vlr"])[0] == where(losses["ld_vlr_kd"])[0] == region
    options = losses["ld_vlr"].terms[0].options
    assert options["exclude_positives"] is exclude_positives
    if region == "inside_box":
        assert options["weighting"] == "student_score"
    else:
        assert (options["gamma"], options["metric"], options["weighting"]) == (0.25, "anchor_iof", "iou")
    assert losses["ld_vlr_kd"].terms[0].options == {**options, "weighting": "mask"}


def test_a_preset_is_a_copy():
    get_losses("bckd", "FCOS")["bckd_cls"].weight = 7
    assert get_losses("bckd", "FCOS")["bckd_cls"].weight == 1
    assert get_losses("bckd", "RetinaNet")["bckd_cls"].weight == 1


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="Unknown method 'croskd', expected one of .*did you mean crosskd"):
        get_losses("croskd", "FCOS")
    with pytest.raises(ValueError) as error:
        get_losses("zzz", "FCOS")
    assert "did you mean" not in str(error.value) and "bckd, crosskd" in str(error.value)


def test_a_family_without_a_preset():
    with pytest.raises(ValueError, match="has no preset for DETR, only for RetinaNet, FCOS, GFL, ATSS; give losses="):
        get_losses("bckd", "DETR")
