"""The presets hold the papers' hyper-parameters."""

import pytest
from detectron2.config import instantiate

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.methods import METHODS, get_losses


def build(method, family):
    return {name: instantiate(node) for name, node in get_losses(method, family).items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_instantiates_to_losses_of_both_branches(method):
    for family in METHODS[method]:
        losses = build(method, family)
        assert [loss.task for loss in losses.values()] == ["cls", "box"]
        # The default normaliser; the papers' own are for parity tests.
        assert all(x.normalizer == "positives" and not x.skip_empty_levels for x in losses.values())


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS"])
def test_bckd(family):
    losses = build("bckd", family)
    cls, loc = losses["bckd_cls"], losses["bckd_loc"]
    assert isinstance(cls, BinaryClassificationKD) and isinstance(loc, IoULocalizationKD)
    assert (cls.weight, cls.beta, cls.detach_gap, cls.source, cls.region) == (1, 1, False, "student", "all_locations")
    assert (loc.weight, loc.iou_type, loc.source, loc.region) == (4, "giou", "student", "gap")


@pytest.mark.parametrize(
    "family, tail, cls_weight, loc_weight, iou_type",
    [("RetinaNet", 1, 1.0, 1.0, "giou"), ("FCOS", 2, 0.4, 0.75, "neg_log_iou")],
)
def test_crosskd(family, tail, cls_weight, loc_weight, iou_type):
    losses = build("crosskd", family)
    cls, loc = losses["crosskd_cls"], losses["crosskd_loc"]
    assert isinstance(cls, BinaryClassificationKD) and isinstance(loc, IoULocalizationKD)
    assert (cls.weight, cls.beta, cls.detach_gap, cls.region) == (cls_weight, 1, False, "all_locations")
    assert (loc.weight, loc.iou_type, loc.region) == (loc_weight, iou_type, "teacher_quality")
    assert all(x.source == "crossed" and x.tail == tail for x in (cls, loc))


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
    with pytest.raises(ValueError, match="'bckd' has no preset for DETR, only for RetinaNet, FCOS; give losses="):
        get_losses("bckd", "DETR")
