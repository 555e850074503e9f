"""The methods of d2kd.methods inside a step: what they train, when they are silent, what of them a checkpoint keeps."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from d2kd.config import distill
from d2kd.losses import DynamicBoxKD, DynamicLocalizationDistillation, PearsonFeatureKD, TaskIntegrationKD
from d2kd.methods import METHODS, get_losses
from d2kd.modeling.detectors import GFL
from tests.helpers import FAMILIES, build_detector, distilled, gradients, make_batch, preset, reached, run_step
from tests.modeling.detectors.helpers import CLASSES, build

TOWERS = {"cls": ("cls_subnet", "cls_score"), "box": ("bbox_subnet", "bbox_pred"), "centerness": ("bbox_subnet", "ctr")}


def pair(family, **kwargs):
    return [build_detector(family, seed=seed, **kwargs) for seed in (0, 1)]


def terms_of(losses):
    return {name.removeprefix("loss_kd_"): x for name, x in losses.items() if name.startswith("loss_kd_")}


# Crossing ends where alignment rounds, not at zero; LD is tested on the heads that it needs.
@pytest.mark.parametrize("method", [method for method in METHODS if not method.startswith(("crosskd", "ld"))])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_like_the_student_has_nothing_to_say(family, method):
    # FrozenBN: the student in training mode computes what the teacher does in eval mode.
    same = [build_detector(family, backbone_norm="FrozenBN") for _ in range(2)]
    model = distilled(*same, preset(method, family))
    for name, term in terms_of(run_step(model, make_batch())).items():
        if "centerness" in name:  # binary cross entropy with a soft target ends at the target's entropy
            found = gradients(model, term)
            assert all(grad is None or grad.abs().max() < 1e-6 for grad in found.values())
        else:
            assert term.item() == pytest.approx(0, abs=1e-6), name
            assert term.requires_grad
            grads = [grad.abs().max() for grad in gradients(model, term).values() if grad is not None]
            assert grads and max(grads) < 1e-4, name


@pytest.mark.parametrize("source", ["student", "crossed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_response_trains_its_own_branch(family, source):
    model = distilled(*pair(family), preset("ftpd", family, source=source))
    losses = terms_of(run_step(model, make_batch()))
    assert set(losses) == set(get_losses("ftpd", family))
    for name, term in losses.items():
        names = reached(gradients(model, term))
        towers = TOWERS[model.losses[name].task]
        heads = {n for n in names if n.startswith("head.")}
        assert any(n.startswith("backbone.bottom_up.stem.") for n in names), name
        if source == "crossed":  # the student's predictors are not run
            assert heads and all(n.startswith(f"head.{towers[0]}") for n in heads)
        else:
            assert {n.split(".")[1] for n in heads if "scales" not in n} == {
                next(c for c in dict(model.head.named_children()) if c.startswith(t)) for t in towers
            }


@pytest.mark.parametrize("method", ["tid", "pkd", "cwd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_feature_losses_train_the_backbone_alone(family, method):
    model = distilled(*pair(family), preset(method, family))
    (term,) = terms_of(run_step(model, make_batch())).values()
    assert term.item() > 0
    names = reached(gradients(model, term))
    assert names and all(name.startswith("backbone.") for name in names)


@pytest.mark.parametrize("loss", [TaskIntegrationKD, PearsonFeatureKD])
def test_features_of_another_width_go_through_a_trained_convolution(loss, tmp_path):
    student, teacher = build_detector("GFL", fpn=8), build_detector("GFL", seed=1, fpn=12)
    with pytest.raises(ValueError, match=r"8 channels and the teacher \(GFL\) 12: set .*projector_channels=\[8, 12\]"):
        run_step(distilled(student, teacher, {"f": loss()}), make_batch())
    model = distilled(student, teacher, {"f": loss(projector_channels=[8, 12])})
    term = run_step(model, make_batch())["loss_kd_f"]
    names = reached(gradients(model, term))
    weight = "distillation.losses.f.projector.weight"
    assert weight in names and weight in dict(model.named_parameters())
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    resumed = distilled(student, teacher, {"f": loss(projector_channels=[8, 12])})
    torch.nn.init.zeros_(resumed.distillation.losses["f"].projector.weight)
    DetectionCheckpointer(resumed).load(str(tmp_path / "model.pth"))
    torch.testing.assert_close(run_step(resumed, make_batch())["loss_kd_f"], term)


def test_a_learned_temperature_is_optimised_saved_and_resumed(tmp_path):
    def model():
        return distilled(*pair("GFL"), {"dlt": DynamicLocalizationDistillation(kind="learned", learn_iters=4)})

    first = model()
    (name,) = (n for n, _ in first.named_parameters() if n.startswith("distillation.losses.dlt."))
    optimizer = torch.optim.SGD(first.parameters(), lr=0.5)
    before = dict(first.named_parameters())[name].detach().clone()
    run_step(first, make_batch(), iteration=4)["loss_kd_dlt"].backward()
    optimizer.step()
    learned = dict(first.named_parameters())[name].detach()
    assert not torch.equal(learned, before)
    DetectionCheckpointer(first, str(tmp_path)).save("model")
    resumed = model()
    DetectionCheckpointer(resumed).load(str(tmp_path / "model.pth"))
    assert torch.equal(dict(resumed.named_parameters())[name], learned)
    expected, found = (run_step(x, make_batch(), iteration=4)["loss_kd_dlt"] for x in (first, resumed))
    torch.testing.assert_close(found, expected)


def test_the_dynamic_temperature_of_plain_boxes_is_resumed(tmp_path):
    def model():
        return distilled(*pair("FCOS"), {"dlt": DynamicBoxKD()})

    first = model()
    for seed in range(3):
        run_step(first, make_batch(seed=seed))
    DetectionCheckpointer(first, str(tmp_path)).save("model")
    resumed = model()
    DetectionCheckpointer(resumed).load(str(tmp_path / "model.pth"))
    expected, found, anew = (run_step(x, make_batch(seed=4))["loss_kd_dlt"] for x in (first, resumed, model()))
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(anew, expected, rtol=1e-4)  # the history matters


@pytest.mark.parametrize("family", ["DistributionRetinaNet", "DistributionFCOS", "DistributionATSS"])
def test_distribution_heads_get_the_temperature_of_distributions(family):
    student, teacher = (build(family, seed=seed) for seed in (0, 1))
    losses = {name: instantiate(x) for name, x in get_losses("ftpd", family).items()}
    assert type(losses["ftpd_dlt"]) is DynamicLocalizationDistillation
    found = terms_of(run_step(distilled(student, teacher, losses), make_batch(), iteration=500))
    assert all(term.item() > 0 for term in found.values())
    with pytest.raises(ValueError, match="DynamicLocalizationDistillation"):
        run_step(distilled(student, teacher, {"dlt": DynamicBoxKD()}), make_batch())


def test_distill_finds_the_preset_of_the_students_own_class():
    node = L(CLASSES["DistributionFCOS"])(backbone=None, num_classes=3)
    losses = distill(node, teacher=node, teacher_checkpoint="x", method="ftpd").losses
    assert instantiate(losses.ftpd_dlt).task == "box" and "DynamicLocalization" in str(losses.ftpd_dlt._target_)
    assert "DynamicLocalization" in str(
        distill(L(GFL)(), teacher=node, teacher_checkpoint="x", method="ftpd").losses.ftpd_dlt._target_
    )


@pytest.mark.parametrize("method", ["ftpd_hetero", "tid", "crosskd_pkd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_terms_are_finite_and_fp32(family, method):
    model = distilled(*pair(family), preset(method, family))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run_step(model, make_batch())
    assert all(x.isfinite() and x.dtype == torch.float32 for x in terms_of(losses).values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
