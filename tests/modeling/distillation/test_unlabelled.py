"""Images without labels: what trains on them, what does not, and what they count for."""

import logging
from itertools import product

import pytest
import torch
from detectron2.utils import logger as detectron2_logger
from detectron2.utils.events import EventStorage

from d2kd.losses import BinaryClassificationKD, FeatureImitation, IoULocalizationKD
from d2kd.losses.pearson_feature import PearsonFeatureKD
from d2kd.regions import REGION_REGISTRY, is_label_free
from tests.helpers import (
    FAMILIES,
    build_detector,
    distilled,
    gradients,
    make_batch,
    preset,
    run_step,
    watched,
)

SIZES = [(48, 64)] * 4
LABEL_FREE = {"everywhere", "all_locations", "teacher_quality", "gap", "general_instances"}
METHODS_OF_FAMILIES = [
    *product(["bckd", "crosskd", "pkd", "tid"], FAMILIES),
    *product(["ftpd"], ["RetinaNet", "FCOS", "GFL"]),
    ("ld", "GFL"),
]


def detector(family, seed=0, **kwargs):
    """Its predictions for an image do not depend on the others of the batch."""
    return build_detector(family, seed=seed, backbone_norm="FrozenBN", **kwargs)


def pair(family, losses):
    return distilled(detector(family), detector(family, 1), losses)


def without_labels(batch, images, mark=False):
    """The same batch, in which ``images`` have none; ``mark``: they say so instead."""
    batch = [dict(item) for item in batch]
    for index in images:
        if mark:
            batch[index]["unlabeled"] = True
        else:
            del batch[index]["instances"]
    return batch


def kd(losses):
    return {name: value for name, value in losses.items() if name.startswith("loss_kd_")}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_detection_losses_are_those_of_the_labelled_images(family):
    """Wherever they stand in the batch."""
    batch = make_batch(SIZES)
    model = pair(family, preset("crosskd", family, tail=1))
    found = run_step(model, without_labels(batch, [0, 2]))
    expected = run_step(detector(family), [batch[1], batch[3]])
    assert_close({name: found[name] for name in expected}, expected)
    assert model.student.__dict__.get("loss_normalizer", 0) > 0 or family in ("GFL", "ATSS")


def plain_sums(region="everywhere", source="student"):
    kwargs = dict(region=region, source=source, normalizer="none")
    return dict(cls=BinaryClassificationKD(**kwargs), loc=IoULocalizationKD(**kwargs))


@pytest.mark.parametrize("source", ["student", "crossed"])
@pytest.mark.parametrize("region", sorted(LABEL_FREE))
def test_a_region_that_reads_no_labels_holds_in_all_images(region, source):
    """FCOS ignores no location; crossed taps are aligned by the batch, which is the same."""
    batch = make_batch(SIZES)
    full = kd(run_step(pair("FCOS", plain_sums(region, source)), batch))
    found = kd(run_step(pair("FCOS", plain_sums(region, source)), without_labels(batch, [2, 3])))
    assert_close(found, full)
    assert all(value > 0 for value in found.values())


def test_which_regions_read_no_labels():
    """A new region is taken to read labels until it says that it does not."""
    assert {name for name, _ in REGION_REGISTRY if is_label_free(name)} == LABEL_FREE


@pytest.mark.parametrize("region", ["positives", "main", "inside_box", "valuable_localization", "fine_grained"])
def test_a_region_that_reads_labels_is_empty_without(region):
    """Even if the region's own function would say otherwise of an image without objects."""
    batch = make_batch(SIZES, objects=4)
    losses = plain_sums(region) | {"all": BinaryClassificationKD()}  # which keeps the images in the step
    found = kd(run_step(pair("GFL", losses), without_labels(batch, [0, 3])))
    losses = plain_sums(region) | {"all": BinaryClassificationKD()}
    expected = kd(run_step(pair("GFL", losses), [batch[1], batch[2]]))
    for name in ("loss_kd_cls", "loss_kd_loc"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
        assert found[name] > 0


@pytest.mark.parametrize("method, family", METHODS_OF_FAMILIES)
def test_the_mark_says_the_same_as_their_absence(method, family):
    """And the place in the batch does not matter (alignment and statistics are over all of it)."""
    batch = make_batch(SIZES, objects=3)
    results = [
        run_step(pair(family, preset(method, family, tail=1)), unlabelled, iteration=500)
        for unlabelled in (
            without_labels(batch, [1, 2]),
            without_labels(batch, [1, 2], mark=True),
            without_labels([batch[i] for i in (1, 0, 3, 2)], [0, 3]),
        )
    ]
    for other in results[1:]:
        assert_close(other, results[0])
    assert all(value.isfinite() for value in results[0].values())


@pytest.mark.parametrize("method, family", METHODS_OF_FAMILIES)
def test_a_batch_without_any_labels(method, family):
    """The same names, every parameter in the graph, detection losses of exactly 0, and no trace in the normaliser."""
    batch = make_batch(SIZES, objects=3)
    model, other = (pair(family, preset(method, family, tail=1)) for _ in range(2))
    expected = run_step(other, batch, iteration=500)
    losses = run_step(model, without_labels(batch, range(4)), iteration=500)
    assert list(losses) == list(expected)
    label_free = {name for name, loss in model.losses.items() if any(spec.label_free for spec in loss.regions)}
    assert {name for name, value in losses.items() if value != 0} == {f"loss_kd_{name}" for name in label_free}
    in_graph = {name for name, grad in gradients(model, sum(losses.values())).items() if grad is not None}
    assert in_graph == {n for n, g in gradients(other, sum(expected.values())).items() if g is not None}
    assert "loss_normalizer" not in vars(model.student)  # FCOS's and RetinaNet's is made at the first labels
    assert model.distillation.positives_per_image.sum() == 0
    run_step(model, batch, iteration=500)
    before = vars(model.student).get("loss_normalizer"), model.distillation.positives_per_image.clone()
    run_step(model, without_labels(batch, range(4)), iteration=500)
    after = vars(model.student).get("loss_normalizer"), model.distillation.positives_per_image
    assert before[0] == after[0] and torch.equal(before[1], after[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_of_images_without_labels_is_left_out_as_ever(family):
    """GFL and ATSS ignore anchors beyond an image's own padded size."""
    batch = make_batch([(48, 64), (32, 32)], objects=0)
    full = kd(run_step(pair(family, plain_sums("all_locations")), batch))
    assert_close(kd(run_step(pair(family, plain_sums("all_locations")), without_labels(batch, [1]))), full)


def test_they_count_as_many_positives_as_images_with_labels_do():
    """Half the batch without: a term of all images is divided by twice the positives of the labelled half."""
    model = pair("FCOS", dict(kd=BinaryClassificationKD()))
    batch = make_batch(SIZES, objects=2)
    found = kd(run_step(model, without_labels(batch, [2, 3])))["loss_kd_kd"]
    total = kd(run_step(pair("FCOS", plain_sums()), batch))["loss_kd_cls"]
    labelled = distilled(detector("FCOS"), detector("FCOS", 1), dict(kd=BinaryClassificationKD()))
    run_step(labelled, batch[:2])
    per_image = labelled.distillation.positives_per_image[0]
    assert per_image > 0 and model.distillation.positives_per_image[0] == per_image
    torch.testing.assert_close(found, (total / (4 * per_image)).float())
    # Without any labels, the images count what they counted before.
    again = kd(run_step(model, without_labels(batch, range(4))))["loss_kd_kd"]
    torch.testing.assert_close(again, found)


def test_a_term_of_labelled_images_weighs_the_same_beside_others():
    """Its normaliser counts what it sums over: images without labels, which another term takes, are none of it."""
    batch = make_batch(SIZES, objects=4)
    losses = [dict(loc=IoULocalizationKD(region="positives")), dict(loc=IoULocalizationKD(region="positives"))]
    losses[1]["all"] = BinaryClassificationKD()
    expected = run_step(pair("FCOS", losses[0]), batch[:2])["loss_kd_loc"]
    for terms in losses:
        found = run_step(pair("FCOS", terms), without_labels(batch, [2, 3]))["loss_kd_loc"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    left_out = IoULocalizationKD(region="positives", normalizer="local_positives")
    assert run_step(pair("FCOS", dict(loc=left_out)), without_labels(batch, [2, 3]))["loss_kd_loc"] > 0


def test_monitors_are_means_over_the_images_that_a_region_looks_at():
    batch = make_batch(SIZES, objects=4)
    losses = dict(loc=IoULocalizationKD(region="positives"), all=BinaryClassificationKD())
    seen = []
    for images in (batch[:2], without_labels(batch, [2, 3])):
        with EventStorage(0) as storage:
            pair("FCOS", losses)(images)
        seen.append({name: value for name, (value, _) in storage.latest().items() if name.startswith("kd/")})
    for name in ("kd/loc_locations", "kd/all_locations"):
        assert seen[0][name] == seen[1][name] > 0
    assert "kd/unlabeled_images" not in seen[0] and seen[1]["kd/unlabeled_images"] == 2
    with EventStorage(0) as storage:  # nothing takes them: none is seen
        distilled(detector("FCOS"))(without_labels(batch, range(4)))
    assert "kd/unlabeled_images" not in storage.latest()


def test_no_loss_that_takes_them_no_run_of_them():
    batch = make_batch(SIZES)
    model = pair("GFL", preset("tid", "GFL"))
    model.load_teacher()
    seen = []
    for part in (model.backbone, model.teacher.detector.backbone):
        part.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    found = run_step(model, without_labels(batch, [0, 1, 3]))
    assert seen == [1, 1]
    assert_close(found, run_step(pair("GFL", preset("tid", "GFL")), [batch[2]]))
    baseline = distilled(detector("GFL"))
    assert_close(run_step(baseline, without_labels(batch, [0, 1])), run_step(detector("GFL"), batch[2:]))


def test_the_normaliser_of_the_papers_code_cannot_count_them():
    model = pair("FCOS", dict(kd=BinaryClassificationKD(normalizer="local_positives")))
    run_step(model, make_batch(SIZES))
    with pytest.raises(ValueError, match="model.losses.kd.normalizer is 'local_positives'.* this batch has 1: use"):
        run_step(model, without_labels(make_batch(SIZES), [1]))


def test_a_crossed_term_in_other_anchors():
    """The teacher labels the images that have labels, in its own anchors."""
    losses = dict(kd=IoULocalizationKD(source="crossed", region="positives", normalizer="none"),
                  all=BinaryClassificationKD(source="crossed", normalizer="none"))  # fmt: skip
    batch = make_batch(SIZES, objects=4)
    model = distilled(detector("FCOS"), detector("RetinaNet", 1), losses)
    with watched("crossed_assignment") as seen:
        found = run_step(model, without_labels(batch, [0, 1]))
    assert seen[0].num_labelled == 2 and seen[0].num_positives[:2].min() > 0 and seen[0].num_positives[2:].sum() == 0
    assert found["loss_kd_kd"] > 0 and found["loss_kd_all"] > 0


def test_features_of_all_images_are_distilled_where_no_label_is_read():
    losses = dict(pkd=PearsonFeatureKD(), imitation=FeatureImitation(region="inside_box"))
    batch = make_batch(SIZES)
    full = kd(run_step(pair("RetinaNet", losses), batch))
    losses = dict(pkd=PearsonFeatureKD(), imitation=FeatureImitation(region="inside_box"))
    found = kd(run_step(pair("RetinaNet", losses), without_labels(batch, [3])))
    torch.testing.assert_close(found["loss_kd_pkd"], full["loss_kd_pkd"])
    assert not torch.isclose(found["loss_kd_imitation"], full["loss_kd_imitation"], rtol=1e-3)


def test_what_happens_with_them_is_said_once(caplog):
    detectron2_logger._LOG_COUNTER.clear()
    batch = make_batch(SIZES)
    with caplog.at_level(logging.WARNING, logger="detectron2"):
        model = pair("FCOS", preset("crosskd", "FCOS", tail=1))
        for _ in range(2):
            run_step(model, without_labels(batch, [1]))
        assert len(caplog.records) == 1
        assert "1 of this batch's 4 images have no labels" in caplog.text
        assert "only crosskd_cls, crosskd_loc use them" in caplog.text
        for _ in range(2):
            run_step(model, without_labels(batch, range(4)))
    assert len(caplog.records) == 2
    assert "no labels at all" in caplog.text and "is_train=False" in caplog.text
