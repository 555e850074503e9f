"""Batches without objects, tiny images, and what they must not break."""

from itertools import product

import pytest
import torch

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.methods import METHODS
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, preset, run_step

#: Methods with losses of their own on every detector, and none at all.
SINGLE = [None, *(x for x in METHODS if x not in ("ld", "bckd_pkd", "crosskd_pkd", "ftpd_tid"))]
#: Those whose regions do not depend on where objects are, but for CrossKD's centerness.
EVERYWHERE = ("bckd", "crosskd", "ftpd", "ftpd_hetero")
BATCHES = {
    "one image without objects": dict(objects=(2, 0)),
    "no objects": dict(objects=0),
    "one image, 1x1 level": dict(sizes=[(32, 32)], objects=1),
    "one image, 1x1 level, no objects": dict(sizes=[(32, 32)], objects=0),
    "one cell a level": dict(sizes=[(8, 8)], objects=0),
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("family, method", [*product(FAMILIES, SINGLE), ("GFL", "ld")])
def test_losses_and_gradients_are_finite_and_terms_stay_active(family, method, case):
    # FrozenBN: batch norm itself refuses to train on a single value.
    student, teacher = (build_detector(family, seed=seed, backbone_norm="FrozenBN") for seed in (0, 1))
    losses = None if method is None else preset(method, family)
    model = distilled(student, teacher, losses)
    keys = list(run_step(model, make_batch()))
    losses = run_step(model, make_batch(**BATCHES[case]))
    assert list(losses) == keys
    assert all(value.isfinite() for value in losses.values())
    active = {f"loss_kd_{name}": loss for name, loss in model.losses.items() if loss.weight > 0}
    assert all(losses[name].requires_grad for name in active)
    if method in EVERYWHERE:
        assert all(losses[name] > 0 for name, loss in active.items() if loss.regions[0].name != "positives")
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads and all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_positives_the_normaliser_is_one(family):
    student, teacher = build_detector(family), build_detector(family, seed=1)
    model = distilled(student, teacher, "bckd")
    seen = {}
    model.losses["bckd_cls"].register_forward_pre_hook(lambda m, args: seen.update(args=args))
    losses = run_step(model, make_batch(objects=0))
    expected = type(model.losses["bckd_cls"]).forward(model.losses["bckd_cls"], *seen["args"])
    torch.testing.assert_close(losses["loss_kd_bckd_cls"], expected.sum())


def test_a_region_without_locations_gives_a_connected_zero():
    losses = {"cls": BinaryClassificationKD(region="positives"), "loc": IoULocalizationKD(region="positives")}
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), losses)
    found = run_step(model, make_batch(objects=0))
    for name in losses:
        assert found[f"loss_kd_{name}"].item() == 0
        assert found[f"loss_kd_{name}"].requires_grad


def test_a_batch_without_images_is_refused_where_no_other_rank_has_any():
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd")
    with pytest.raises(ValueError, match="This batch has no images, expected at least one: look at the data loader"):
        run_step(model, [])
