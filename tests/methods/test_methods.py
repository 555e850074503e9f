"""The presets hold the papers' hyper-parameters."""

import pytest
from detectron2.config import instantiate
from omegaconf import OmegaConf

import d2kd
from d2kd.losses import (
    BinaryClassificationKD,
    CenternessKD,
    ChannelWiseKD,
    DynamicBoxKD,
    DynamicLocalizationDistillation,
    IoULocalizationKD,
    LocalizationDistillation,
    PearsonFeatureKD,
    SoftmaxClassificationKD,
    TaskIntegrationKD,
    TemperatureFreeClassificationKD,
)
from d2kd.methods import METHODS, describe, get_losses

FAMILIES = ["RetinaNet", "FCOS", "GFL", "ATSS"]


def build(method, family):
    return {name: instantiate(node) for name, node in get_losses(method, family).items()}


def where(loss):
    """Region and normaliser of a loss of one region."""
    (spec,) = loss.regions
    return spec.name, spec.normalizer


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_instantiates(method):
    assert set(METHODS[method]) >= set(FAMILIES)
    for family in METHODS[method]:
        losses = build(method, family)
        # Normalisers that do not depend on how a batch is spread over ranks; the papers' own are for parity tests.
        allowed = {"positives", "images", "locations", "level_locations", "level_mean"}
        assert {spec.normalizer for loss in losses.values() for spec in loss.regions} <= allowed
        assert not any(loss.skip_empty_levels for loss in losses.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_bckd(family):
    losses = build("bckd", family)
    cls, loc = losses["bckd_cls"], losses["bckd_loc"]
    assert isinstance(cls, BinaryClassificationKD) and isinstance(loc, IoULocalizationKD)
    assert (cls.weight, cls.beta, cls.source) == (1, 1, "student")
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
    assert (cls.weight, cls.beta) == (cls_weight, 1)
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
        assert isinstance(loss, SoftmaxClassificationKD)
        assert (loss.temperature, loss.tuned_for_classes) == (temperature, 80)
        assert loss.source == "student" and where(loss)[1] == "level_locations"
    assert where(losses["ld_main"])[0] == "main" and where(losses["ld_main_kd"])[0] == "positives"
    assert where(losses["ld_vlr"])[0] == where(losses["ld_vlr_kd"])[0] == region
    options = losses["ld_vlr"].regions[0].options
    assert options["exclude_positives"] is exclude_positives
    if region == "inside_box":
        assert options["weighting"] == "student_score"
    else:
        assert (options["gamma"], options["metric"], options["weighting"]) == (0.25, "anchor_iof", "iou")
        assert options["topk"] == 9
    assert losses["ld_vlr_kd"].regions[0].options == {**options, "weighting": "mask"}


def warm_up_iters(loss):
    """The iteration from which on a loss has its weight, which grows linearly up to there."""
    weights = []
    while not weights or weights[-1] < loss.weight:
        loss.iteration = len(weights)
        weights.append(loss.scheduled_weight)
    end = len(weights) - 1
    assert weights == pytest.approx([loss.weight * n / end for n in range(end + 1)])
    loss.iteration = loss.schedule_iters
    assert loss.scheduled_weight == loss.weight
    return end


@pytest.mark.parametrize("max_iter, iters", [(90000, 500), (1800, 10), (180, 1)])
def test_a_warm_up_is_a_share_of_the_config_s_schedule(max_iter, iters):
    losses = get_losses("tid", "GFL")
    cfg = OmegaConf.create({"train": {"max_iter": max_iter}, "losses": losses}, flags={"allow_objects": True})
    assert warm_up_iters(instantiate(cfg.losses.tid)) == iters


@pytest.mark.parametrize(
    "family, cls, dlt, box, centerness",
    [
        ("GFL", 1, 2, 2, None),
        ("RetinaNet", 1, 1, 1, None),
        ("FCOS", 0.4, 1, 0.75, 1),
        ("ATSS", 1, 1, 1, 1),
        ("DistributionRetinaNet", 1, 2, 1, None),
        ("DistributionFCOS", 0.4, 2, 0.75, 1),
        ("DistributionATSS", 1, 2, 1, 1),
    ],
)
@pytest.mark.parametrize("method", ["ftpd", "ftpd_hetero"])
def test_ftpd_distils_every_response_in_parallel(method, family, cls, dlt, box, centerness):
    losses = build(method, family)
    weights = {"ftpd_cls": cls, "ftpd_dlt": dlt, "ftpd_box": box, "ftpd_centerness": centerness}
    assert {name: loss.weight for name, loss in losses.items()} == {k: w for k, w in weights.items() if w is not None}
    bins = family == "GFL" or family.startswith("Distribution")
    assert type(losses["ftpd_dlt"]) is (DynamicLocalizationDistillation if bins else DynamicBoxKD)
    if bins:
        dynamic = losses["ftpd_dlt"]
        assert (dynamic.kind, dynamic.kappa, dynamic.t_min, dynamic.t_max) == ("std", 1, 1, 10)
    else:
        assert losses["ftpd_dlt"].kind == "residual"
    assert isinstance(losses["ftpd_cls"], TemperatureFreeClassificationKD)
    assert losses["ftpd_cls"].kind == ("sigmoid" if method == "ftpd" else "sigmoid+pearson")
    assert losses["ftpd_cls"].beta == 1
    assert losses["ftpd_box"].iou_type == "giou"
    quality = ("teacher_quality", {"centerness": True}, "locations")
    for name, loss in losses.items():
        assert loss.source == "student" and warm_up_iters(loss) == 500
        terms = [(spec.name, spec.options, spec.normalizer) for spec in loss.regions]
        if name != "ftpd_cls":
            assert terms == [quality]
        else:
            assert terms == [("all_locations", {}, "positives"), *([quality] if method == "ftpd_hetero" else [])]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method, least", [("tid", 0), ("tid_reliable", 2.25)])
def test_tid(method, least, family):
    (loss,) = build(method, family).values()
    assert isinstance(loss, TaskIntegrationKD)
    assert (loss.weight, loss.region_weights) == (1, {"weak": 4, "key": 2, "rest": 1})
    assert (loss.combine, loss.min_teacher_score, loss.projector) == ("product", least, None)
    assert [spec.normalizer for spec in loss.regions] == ["level_mean"] * 3
    assert warm_up_iters(loss) == 500


@pytest.mark.parametrize("family, weight", [("GFL", 6), ("RetinaNet", 2), ("FCOS", 2), ("ATSS", 1)])
@pytest.mark.parametrize("method", ["pkd", "crosskd_pkd", "bckd_pkd"])
def test_pkd_alone_and_beside_others(method, family, weight):
    losses = build(method, family)
    pkd = losses["pkd"]
    assert isinstance(pkd, PearsonFeatureKD) and (pkd.weight, pkd.schedule) == (weight, None)
    assert where(pkd) == ("everywhere", "level_locations")
    others = {} if method == "pkd" else build(method.removesuffix("_pkd"), family)
    assert list(losses) == [*others, "pkd"]
    assert {name: repr(loss) for name, loss in losses.items() if name != "pkd"} == {
        name: repr(loss) for name, loss in others.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_cwd(family):
    """0.5 of a sum divided by half the images: the mean over images."""
    (loss,) = build("cwd", family).values()
    assert isinstance(loss, ChannelWiseKD)
    assert (loss.weight, loss.temperature, loss.schedule, loss.projector) == (0.5, 1, None, None)
    assert where(loss) == ("everywhere", "images")


@pytest.mark.parametrize("family", FAMILIES[:2] + FAMILIES[3:])
def test_a_combination_has_the_preset_of_each_method_for_a_head_with_distributions(family):
    losses = build("ftpd_tid", f"Distribution{family}")
    assert {name: repr(loss) for name, loss in losses.items()} == {
        name: repr(loss)
        for part in (build("ftpd", f"Distribution{family}"), build("tid", family))
        for name, loss in part.items()
    }


def test_the_nearest_class_with_a_preset_is_taken():
    assert "DynamicLocalization" in str(get_losses("ftpd", "DistributionFCOS", "FCOS")["ftpd_dlt"]._target_)
    assert "DynamicBoxKD" in str(get_losses("ftpd", "MyFCOS", "FCOS")["ftpd_dlt"]._target_)
    assert get_losses("bckd", "DistributionFCOS", "FCOS") == get_losses("bckd", "FCOS")


def test_the_list_has_fields():
    listed = d2kd.list_methods()
    assert list(listed) == list(METHODS)
    bckd, tid, ld = listed["bckd"], listed["tid"], listed["ld"]
    assert bckd.name == "bckd" and bckd.paper == METHODS["bckd"].paper and bckd.families == tuple(FAMILIES)
    assert bckd.needs == ("levels and classes in common", *METHODS["bckd"].needs)
    assert bckd.reconstructed == METHODS["bckd"].reconstructed and tid.reconstructed
    (crossed,) = listed["crosskd"].losses["crosskd_loc"]
    assert (crossed.source, crossed.regions, crossed.on) == ("crossed", ("teacher_quality",), True)
    assert [use.regions for use in ld.losses["ld_vlr"]] == [("valuable_localization",), ("inside_box",)]
    assert not ld.losses["ld_vlr_kd"][0].on
    assert describe("tid") == tid and str(tid) in str(listed)
    with pytest.raises(ValueError, match="Unknown method 'tdi', expected one of .*did you mean tid"):
        describe("tdi")


def test_the_list_says_what_each_method_is():
    blocks = {block.split("\n")[0]: " ".join(block.split()) for block in str(d2kd.list_methods()).split("\n\n")}
    assert list(blocks) == list(METHODS)
    for name, method in METHODS.items():
        assert method.paper in blocks[name] and all(need in blocks[name] for need in method.needs)
        assert ("reconstructed" in blocks[name]) == bool(method.reconstructed)
        assert all(family in blocks[name] for family in method)
    assert "crosskd_loc crossed, teacher_quality" in blocks["crosskd"]
    assert "tid student, task_integration.weak, task_integration.key, task_integration.rest" in blocks["ftpd_tid"]
    assert "ld_vlr student, valuable_localization or student, inside_box" in blocks["ld"]
    assert "ld_vlr_kd student, valuable_localization (off)" in blocks["ld"]
    assert blocks["ftpd_tid"].count("the same anchors") == 1
    assert "reconstructed" in blocks["ftpd"] and "reconstructed" in blocks["tid"]


def test_a_preset_is_a_copy():
    get_losses("bckd", "FCOS")["bckd_cls"].weight = 7
    assert get_losses("bckd", "FCOS")["bckd_cls"].weight == 1
    assert get_losses("bckd", "RetinaNet")["bckd_cls"].weight == 1


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="Unknown method 'croskd', expected one of .*did you mean crosskd"):
        get_losses("croskd", "FCOS")
    with pytest.raises(ValueError, match="did you mean ftpd"):
        get_losses("FTPD", "FCOS")
    with pytest.raises(ValueError) as error:
        get_losses("zzz", "FCOS")
    assert "did you mean" not in str(error.value) and "bckd, ld, crosskd" in str(error.value)


def test_a_family_without_a_preset():
    with pytest.raises(ValueError, match="has no preset for DETR, only for RetinaNet, FCOS, GFL, ATSS; give losses="):
        get_losses("bckd", "DETR")
