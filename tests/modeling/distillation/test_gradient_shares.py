"""The share of each term in the gradient at the student's FPN outputs."""

import pytest
import torch

from d2kd.modeling.distillation.gradient_shares import gradient_shares
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, preset, run_step, watched
from tests.nodes import pair

METHODS = ("bckd", "crosskd_pkd", "ftpd_tid", "cwd")


def measured(model, batch=None):
    with watched("predict") as predictions:
        losses = run_step(model, batch or make_batch(objects=3))
    return losses, predictions[0].output.features


def by_hand(losses, features, wanted):
    total = sum(value for name, value in losses.items() if wanted(name))
    grads = torch.autograd.grad(total, features, retain_graph=True, allow_unused=True)
    return torch.cat([x.double().flatten() for x in grads if x is not None]).norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_ratio_of_two_norms_and_the_gradient_afterwards_is_the_same(family, method):
    losses, features = measured(pair(family, method))
    shares = gradient_shares(losses, features)
    detection = by_hand(losses, features, lambda name: not name.startswith("loss_kd_"))
    assert losses.keys() >= {f"loss_kd_{name}" for name in shares} and len(shares) > 0
    for name, share in shares.items():
        expected = by_hand(losses, features, f"loss_kd_{name}".__eq__) / detection
        assert share.item() == pytest.approx(expected.item(), rel=1e-5)
        assert share.item() > 0

    grads = {}
    for measure in (False, True):
        model = pair(family, method)
        losses, features = measured(model)
        if measure:
            gradient_shares(losses, features)
            assert all(x.grad is None for x in model.parameters())
        sum(losses.values()).backward()
        grads[measure] = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert grads[True].keys() == grads[False].keys()
    assert all(torch.equal(grads[True][name], grad) for name, grad in grads[False].items())


def test_a_term_that_is_off_has_none_and_a_doubled_weight_doubles_it():
    def shares_with(weight):
        losses = preset("bckd", "RetinaNet")
        losses["bckd_cls"].weight, losses["bckd_loc"].weight = weight, 0.0
        student, teacher = (build_detector("RetinaNet", seed=seed) for seed in (0, 1))
        return gradient_shares(*measured(distilled(student, teacher, losses)))

    once, twice = shares_with(1.0), shares_with(2.0)
    assert once["bckd_loc"] == 0
    assert twice["bckd_cls"].item() == pytest.approx(2 * once["bckd_cls"].item(), rel=1e-5)


def test_half_precision_loses_no_small_gradient():
    features = [torch.ones(2, 3, dtype=torch.float16, requires_grad=True)]
    losses = {"loss_cls": (features[0].float() * 1e-7).sum(), "loss_kd_x": (features[0].float() * 3e-8).sum()}
    assert gradient_shares(losses, features)["x"].item() == pytest.approx(0.3, rel=0.01)


def test_frozen_features_are_refused():
    student = build_detector("FCOS")
    student.backbone.requires_grad_(False)
    model = distilled(student, build_detector("FCOS", seed=1), "bckd")
    with pytest.raises(ValueError, match="need no gradient"):
        gradient_shares(*measured(model))


def test_without_a_detection_gradient_there_is_no_share():
    features = [torch.ones(2, requires_grad=True)]
    losses = {"loss_cls": features[0].sum() * 0, "loss_kd_x": features[0].sum()}
    assert gradient_shares(losses, features)["x"].isnan()


def test_a_level_that_no_term_reads():
    features = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True), torch.ones(3)]
    losses = {"loss_cls": features[0].sum() + 2 * features[1].sum(), "loss_kd_x": 3 * features[1].sum()}
    assert gradient_shares(losses, features)["x"].item() == pytest.approx((27 / 14) ** 0.5)
