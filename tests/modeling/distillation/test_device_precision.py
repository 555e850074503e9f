"""Half precision and memory layouts on a device."""

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler

from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, preset, run_step


def pair(family):
    return distilled(build_detector(family), build_detector(family, seed=1), preset("crosskd_pkd", family, tail=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_in_half_precision(family, device):
    """Detections are those of fp32, up to rounding."""
    model, batch = pair(family).to(device.device).eval(), make_batch()
    with torch.no_grad():
        expected = [x["instances"] for x in model(batch)]
        found = [x["instances"] for x in model.half()(batch)]
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs) and abs(len(ours) - len(theirs)) <= 0.1 * len(theirs)
        best = [x.scores.float().cpu().topk(5).values for x in (ours, theirs)]
        torch.testing.assert_close(*best, rtol=0.02, atol=0.005)
        assert ours.pred_boxes.tensor.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_last(family, device):
    """The layout of student and teacher changes, the numbers do not."""

    def step(model):
        losses = run_step(model.train(), make_batch())
        sum(losses.values()).backward()
        return [x.detach().cpu() for x in (*losses.values(), *(p.grad for p in model.parameters()))]

    expected = step(pair(family).to(device.device))
    model = pair(family)
    model.load_teacher()
    model.to(device.device).to(memory_format=torch.channels_last)
    found = step(model)
    for detector in (model, model.teacher.detector):
        assert detector.head.cls_score.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_in_mixed_precision(dtype, device):
    """Loss scaling in fp16, projectors under the autocast of their inputs, a weight with a schedule."""
    losses = preset("crosskd_pkd", "FCOS", tail=1)
    losses["pkd"].schedule, losses["pkd"].schedule_iters = LinearParamScheduler(0.0, 1.0), 3
    model = DistilledDetector(
        student=build_detector("FCOS"),
        teacher=dict(model=build_detector("FCOS", seed=1, conv_dims=(16, 16))),
        losses=losses,
        tap_projector_channels=[8, 16],
    )
    model = model.to(device.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.device.type, init_scale=2.0**12, enabled=dtype == torch.float16)
    projected = []
    for projector in model.distillation.tap_projectors.modules():
        if isinstance(projector, torch.nn.Conv2d):
            projector.register_forward_hook(lambda _, inputs, out: projected.append((inputs[0].dtype, out.dtype)))
    before = [p.detach().clone() for p in model.parameters()]
    history = []
    for iteration in range(4):
        with torch.autocast(device.device.type, dtype=dtype):
            losses = run_step(model, make_batch(), iteration)
        optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimizer)
        scaler.update()
        history.append(losses["loss_kd_pkd"].item())
    assert set(projected) == {(dtype, dtype)}
    assert scaler.get_scale() == (2.0**12 if scaler.is_enabled() else 1.0)  # no step was left out
    assert history[0] == 0 and all(x > 0 for x in history[1:])
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.dtype == torch.float32 and p.isfinite().all() and not torch.equal(p, old)
