"""LD's preset on every detector that it was published for: what it trains, and the pairs that it refuses."""

import dataclasses
import logging

import pytest
import torch
from detectron2.config import instantiate

from d2kd.losses import FeatureImitation
from d2kd.methods import METHODS, get_losses
from d2kd.modeling import get_adapter
from tests.helpers import build_detector, distilled, gradients, make_batch, reached, run_step
from tests.modeling.detectors.helpers import DISTRIBUTIONS, build, build_head

FAMILIES = {
    "GFL": "GFL",
    "DistributionATSS": "ATSS",
    "DistributionRetinaNet": "RetinaNet",
    "DistributionFCOS": "FCOS",
}


def ld(family, **changes):
    losses = get_losses("ld", family)
    for name, loss in losses.items():
        loss.update(changes.get(name, {}))
    return {name: instantiate(loss) for name, loss in losses.items()}


def test_there_is_a_preset_for_every_detector_with_distributions():
    assert set(FAMILIES) == set(DISTRIBUTIONS)
    assert set(FAMILIES.values()) == set(METHODS["ld"])


@pytest.mark.parametrize("name, family", FAMILIES.items())
def test_every_term_trains_its_branch(name, family):
    student, teacher = build(name, seed=0), build(name, seed=1)
    assert get_adapter(student).describe(student).family == family
    assert get_adapter(student).describe(student).bins == 5
    # The fourth weight is 0 in the preset.
    model = distilled(student, teacher, ld(family, ld_vlr_kd=dict(weight=10.0)))
    losses = run_step(model, make_batch(objects=(2, 3)))
    for term in model.losses:
        value = losses[f"loss_kd_{term}"]
        assert value.item() > 0, term
        names = {key.split(".")[1] for key in reached(gradients(model, value)) if key.startswith("head.")}
        expected = {"cls_subnet", "cls_score"} if term.endswith("kd") else {"bbox_subnet", "bbox_pred", "scales"}
        assert names == expected, term


@pytest.mark.parametrize("name, family", FAMILIES.items())
@pytest.mark.parametrize("method", ["bckd", "crosskd"])
def test_other_methods_work_on_distributions_too(name, family, method):
    losses = {k: instantiate(v) for k, v in get_losses(method, family).items()}
    model = distilled(build(name, seed=0), build(name, seed=1), losses)
    found = run_step(model, make_batch(objects=(2, 3)))
    assert all(found[f"loss_kd_{term}"].item() > 0 for term in model.losses)


@pytest.mark.parametrize("name, family", FAMILIES.items())
def test_a_teacher_equal_to_the_student_has_nothing_to_teach(name, family):
    """Self-LD's limit: same architecture, same weights."""
    found = run_step(distilled(build(name), build(name), ld(family)), make_batch())
    for term in ("ld_main", "ld_vlr", "ld_main_kd"):
        assert found[f"loss_kd_{term}"].item() == pytest.approx(0, abs=1e-6)


def test_the_default_does_not_depend_on_the_images_a_gpu_as_the_papers_code_does():
    """Twice the same two images: the sums double, and LD's default terms stay what they were."""
    student, teacher = (build("GFL", seed=seed) for seed in (0, 1))
    losses = ld("GFL") | {f"raw_{name}": loss for name, loss in ld("GFL").items()}
    for name in ("ld_main", "ld_vlr"):
        raw = losses[f"raw_{name}"]
        raw.regions = (dataclasses.replace(raw.regions[0], normalizer="none"),)
    model = distilled(student, teacher, losses)
    batch = make_batch([(48, 64)] * 2, objects=(2, 3))
    two, four = run_step(model, batch), run_step(model, [*batch, *batch])
    for name in ("ld_main", "ld_vlr", "ld_main_kd"):
        torch.testing.assert_close(four[f"loss_kd_{name}"], two[f"loss_kd_{name}"], rtol=1e-5, atol=0)
    for name in ("ld_main", "ld_vlr"):
        torch.testing.assert_close(two[f"loss_kd_raw_{name}"], two[f"loss_kd_{name}"], rtol=1e-6, atol=0)
        torch.testing.assert_close(four[f"loss_kd_raw_{name}"], 2 * two[f"loss_kd_{name}"], rtol=1e-5, atol=0)


def refused(student, teacher, losses, *parts):
    model = distilled(student, teacher, losses)
    with pytest.raises(ValueError) as error:
        run_step(model, make_batch())
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "ATSS"])
def test_heads_without_distributions_are_refused(family):
    student, teacher = (build_detector(family, seed=seed) for seed in (0, 1))
    refused(student, teacher, ld(family), "model.losses.ld_main: ", "has none", f"Distribution{family}")


def test_another_reg_max_is_refused():
    student, teacher = build("GFL"), build("GFL", head=build_head("GFL", reg_max=7))
    refused(student, teacher, ld("GFL"), "model.losses.ld_main: ", "reg_max=4", "reg_max=7", "head.reg_max")


def test_features_of_another_width_are_refused():
    student, teacher = (build_detector("GFL", fpn=fpn, conv_dims=(8, 8)) for fpn in (8, 16))
    refused(student, teacher, {"im": FeatureImitation()}, "model.losses.im: ", "8 channels", "16")


def test_softmax_over_one_class_is_warned_of(caplog):
    student, teacher = (build_detector("GFL", seed=seed, num_classes=1) for seed in (0, 1))
    batch = make_batch()
    for item in batch:
        item["instances"].gt_classes.zero_()
    model = distilled(student, teacher, ld("GFL"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            losses = run_step(model, batch)
    assert losses["loss_kd_ld_main_kd"].item() == 0 < losses["loss_kd_ld_main"].item()
    said = [record.getMessage() for record in caplog.records if "one class" in record.getMessage()]
    assert len(said) == 1, caplog.text


def test_retinanets_terms_by_hand():
    """One softmax for each side, nine-anchor threshold, positives left out of the band, temperatures 10 and 8."""
    student, teacher = (build("DistributionRetinaNet", seed=seed) for seed in (0, 1))
    model = distilled(student, teacher, ld("RetinaNet", ld_vlr_kd=dict(weight=10.0)))
    seen = {}
    for name, loss in model.losses.items():
        loss.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args}))
    found = run_step(model, make_batch(objects=(3, 2)))

    def kl(z, t, temperature):  # the axis of bins or classes last
        p, log_q = (t / temperature).softmax(-1), (z / temperature).log_softmax(-1)
        return temperature**2 * (p * (p.log() - log_q)).mean(-1)

    expected = {"ld_main": 0.0, "ld_vlr": 0.0, "ld_main_kd": 0.0, "ld_vlr_kd": 0.0}
    source, target, *_ = seen["ld_main"]
    positives = [w > 0 for w in seen["ld_main"][2]]
    for level, positive in enumerate(positives):
        scores = source.logits[level].sigmoid().amax(2)
        sides = kl(*(x.box_params[level].permute(0, 1, 4, 5, 2, 3) for x in (source, target)), 10).mean(-1)
        classes = kl(*(x.logits[level].permute(0, 1, 3, 4, 2) for x in (source, target)), 8)
        band = seen["ld_vlr"][2][level]
        assert not (band[positive] > 0).any()
        expected["ld_main"] += 5 * (scores * sides)[positive].sum()
        expected["ld_vlr"] += 0.15 * (band * sides).sum()
        for name, inside in (("ld_main_kd", positive), ("ld_vlr_kd", band > 0)):
            if inside.any():
                expected[name] += 10 * (3 / 80) * classes[inside].mean()  # three classes, tuned for 80
    assert sum(int(x.sum()) for x in positives) > 3
    for name, value in expected.items():
        torch.testing.assert_close(found[f"loss_kd_{name}"], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS"])
def test_a_plain_detector_with_a_distribution_head_is_refused(family):
    detector = build_detector(family)
    detector.head = build(f"Distribution{family}").head
    with pytest.raises(TypeError, match=f"its head predicts distributions .*use Distribution{family} of"):
        distilled(detector)
