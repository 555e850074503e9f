"""Every loss on any dense output: finite, the same whatever the order, and the sum of its parts."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2kd.losses import LOSS_REGISTRY, DistillationLoss, DynamicBoxKD, PearsonFeatureKD, TaskIntegrationKD
from tests.properties.scenes import DTYPES, QUICK, SCALES, SEEDS, Scene, make_scene, rolled, shapes

#: name -> options, of each kind of loss.
OPTIONS = {
    "BinaryClassificationKD": [dict(beta=0.5), dict(beta=1.0), dict(beta=2.0, source="crossed")],
    "CenternessKD": [{}],
    "ChannelWiseKD": [dict(temperature=2.0)],
    "DynamicBoxKD": [dict(kind="residual"), dict(kind="fixed")],
    "DynamicLocalizationDistillation": [dict(kind=kind) for kind in ("std", "learned", "fixed")],
    "FeatureImitation": [{}],
    "IoULocalizationKD": [dict(iou_type=kind) for kind in ("giou", "iou", "neg_log_iou")],
    "LocalizationDistillation": [dict(bin_reduction="mean"), dict(bin_reduction="sum", temperature=1.0)],
    "PearsonFeatureKD": [{}],
    "SoftmaxClassificationKD": [{}],
    "TaskIntegrationKD": [{}],
    "TemperatureFreeClassificationKD": [dict(kind="sigmoid"), dict(kind="sigmoid+pearson", eta=0.5)],
}
OF_DISTRIBUTIONS = ("DynamicLocalizationDistillation", "LocalizationDistillation")
#: Statistics over a batch, which an image shares with the others of it.
OF_THE_BATCH = (PearsonFeatureKD, TaskIntegrationKD)
LOSSES = [pytest.param(name, options, id=f"{name}{options or ''}") for name in OPTIONS for options in OPTIONS[name]]


def shapes_for(name: str, min_images: int = 1):
    bins = name in OF_DISTRIBUTIONS if name != "IoULocalizationKD" else None
    return shapes(bins=bins, min_images=min_images)


def regions(loss: DistillationLoss, scene: Scene, share: float) -> list[Tensor]:
    """Per level, weights in [0, 1), of which ``share`` are not 0."""
    generator = torch.Generator().manual_seed(scene.seed)
    several = () if len(loss.regions) == 1 else (len(loss.regions),)
    anchors = 1 if loss.task == "feature" else scene.shape.anchors
    weights = []
    for h, w in scene.shape.sizes:
        draw = torch.rand(2, *several, scene.shape.images, anchors, h, w, generator=generator)
        weights.append(draw[0] * (draw[1] < share))
    return weights


def run(loss: DistillationLoss, scene: Scene, region: list[Tensor]) -> Tensor:
    """(L,) or (L, R) sums, in a step of its own: no temperature is left of the one before."""
    if isinstance(loss, DynamicBoxKD) and loss.kind == "residual":
        loss.running_temperature.zero_()
    return loss(scene.student, scene.teacher, region)


def test_every_loss_is_looked_at():
    assert set(OPTIONS) == {name for name, _ in LOSS_REGISTRY}


@pytest.mark.parametrize("name, options", LOSSES)
def test_losses_and_gradients_are_finite(name, options):
    """Of any dtype and size of logits, in regions of all, few and no locations, and of no image; in fp32 at least."""
    loss = LOSS_REGISTRY.get(name)(**options)

    @QUICK
    @given(shapes_for(name, 0), SEEDS, st.sampled_from(DTYPES), SCALES, st.sampled_from([0.0, 0.1, 1.0]))
    def check(shape, seed, dtype, scale, share):
        scene = make_scene(shape, seed=seed, dtype=dtype, scale=scale)
        sums = run(loss, scene, regions(loss, scene, share))
        assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert sums.isfinite().all()
        gradients = torch.autograd.grad(sums.sum(), scene.inputs(), allow_unused=True)
        reached = [x for x in gradients if x is not None]
        assert reached and all(x.isfinite().all() and x.dtype == dtype for x in reached)
        if not share:
            assert not sums.any() and not any(x.any() for x in reached)

    check()


@pytest.mark.parametrize("name, options", LOSSES)
def test_the_order_of_images_and_cells_does_not_matter(name, options):
    loss = LOSS_REGISTRY.get(name)(**options)

    @QUICK
    @given(shapes_for(name), SEEDS, SCALES)
    def check(shape, seed, scale):
        scene = make_scene(shape, seed=seed, scale=scale)
        region = regions(loss, scene, 0.7)
        whole = run(loss, scene, region)
        moved = run(loss, scene.of_cells(rolled), [rolled(x, -2, -1) for x in region])
        torch.testing.assert_close(moved, whole, rtol=1e-6, atol=1e-9)
        images = list(range(shape.images))[::-1]
        turned = run(loss, scene.of_images(images), [x[..., images, :, :, :] for x in region])
        torch.testing.assert_close(turned, whole, rtol=1e-6, atol=1e-9)

    check()


@pytest.mark.parametrize("name, options", LOSSES)
def test_a_loss_is_the_sum_of_its_levels_and_images(name, options):
    loss = LOSS_REGISTRY.get(name)(**options)

    @QUICK
    @given(shapes_for(name), SEEDS, SCALES)
    def check(shape, seed, scale):
        scene = make_scene(shape, seed=seed, scale=scale)
        region = regions(loss, scene, 0.7)
        whole = run(loss, scene, region)
        close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)
        # A temperature of the step is that of the whole of it.
        levels = [loss.level_loss(scene.student, scene.teacher, i, weight) for i, weight in enumerate(region)]
        close(torch.stack(levels), whole)
        if isinstance(loss, OF_THE_BATCH):
            return
        total = torch.zeros_like(whole)
        for n in range(shape.images):
            one = scene.of_images([n])
            parts = [x[..., [n], :, :, :] for x in region]
            total += torch.stack([loss.level_loss(one.student, one.teacher, i, x) for i, x in enumerate(parts)])
        close(total, whole)

    check()


@pytest.mark.parametrize("name, options", LOSSES)
def test_gradients_are_those_of_the_value(name, options):
    """By finite differences in fp64, in all of what the student makes."""
    loss = LOSS_REGISTRY.get(name)(**options)

    @settings(QUICK, max_examples=6)
    @given(shapes_for(name), SEEDS, st.sampled_from([0.2, 1.0]))
    def check(shape, seed, share):
        scene = make_scene(shape, seed=seed)
        region = regions(loss, scene, share)
        run(loss, scene, region)  # the temperature of this step

        def value(*_: Tensor) -> Tensor:
            scene.student.__dict__.pop("boxes", None)  # made of what has changed since
            levels = enumerate(region)
            return torch.stack([loss.level_loss(scene.student, scene.teacher, i, x) for i, x in levels]).sum()

        reached = torch.autograd.grad(value(), scene.inputs(), allow_unused=True)
        inputs = [x for x, grad in zip(scene.inputs(), reached, strict=True) if grad is not None]
        assert torch.autograd.gradcheck(value, inputs, fast_mode=True, atol=1e-5, rtol=1e-3)

    check()
