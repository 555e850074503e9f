"""Crossed taps of another width: a 1x1 convolution in front of the teacher's head."""

import pytest
import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler

from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import (
    FAMILIES,
    build_detector,
    distilled,
    gradients,
    make_batch,
    make_losses,
    reached,
    run_step,
)


def pair(family="FCOS", channels=(4, 8), losses=None, ours=4, theirs=8, **fields):
    return DistilledDetector(
        student=build_detector(family, conv_dims=(ours, ours)),
        teacher=dict(model=build_detector(family, seed=1, conv_dims=(theirs, theirs))),
        losses=make_losses("crosskd") if losses is None else losses,
        tap_projector_channels=channels,
        **fields,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_of_another_width_train_through_it(family):
    model = pair(family)
    batch = make_batch()
    losses = run_step(model, batch)
    projectors = {f"distillation.tap_projectors.{branch}_1.weight" for branch in ("cls", "box")}
    assert projectors == {name for name, _ in model.named_parameters() if name.startswith("distillation.")}
    assert all(value.shape == (8, 4, 1, 1) for name, value in model.named_parameters() if name in projectors)
    for name, branch in (("crosskd_cls", "cls"), ("crosskd_loc", "box")):
        found = reached(gradients(model, losses[f"loss_kd_{name}"]))
        assert found & projectors == {f"distillation.tap_projectors.{branch}_1.weight"}
        assert any(x.startswith("backbone") for x in found)
    alone = run_step(distilled(build_detector(family, conv_dims=(4, 4))), batch)
    assert all(torch.equal(losses[name], value) for name, value in alone.items())


def test_the_heads_input_of_another_width():
    """Tail 2 is the whole of these towers."""
    model = DistilledDetector(
        student=build_detector("RetinaNet", fpn=4, conv_dims=(4, 4)),
        teacher=dict(model=build_detector("RetinaNet", seed=1)),
        losses=make_losses("crosskd", tail=2),
        tap_projector_channels=[4, 8],
    )
    losses = run_step(model, make_batch())
    assert "distillation.tap_projectors.box_2.weight" in reached(gradients(model, losses["loss_kd_crosskd_loc"]))


def test_a_projector_that_does_nothing_changes_nothing():
    with_it, without = pair(channels=[8, 8], ours=8), pair(channels=None, ours=8)
    for projector in with_it.distillation.tap_projectors.values():
        torch.nn.init.dirac_(projector.weight)
    expected = run_step(without, make_batch())
    for name, value in run_step(with_it, make_batch()).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_every_projector_is_in_the_graph_whatever_is_on():
    """DDP waits for the gradients of all parameters, also of a branch that no term reads and of terms that are off."""
    off = MultiStepParamScheduler([0.0, 1.0], milestones=[1, 2])
    cls = BinaryClassificationKD(source="crossed", schedule=off, schedule_iters=2)
    model = pair(losses=dict(cls=cls))
    for iteration in (0, 1):
        losses = run_step(model, make_batch(), iteration=iteration)
        assert (losses["loss_kd_cls"] > 0) == (iteration == 1)
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.distillation.parameters())


def test_a_baseline_of_the_same_seed_starts_alike():
    following = []
    for losses in ({}, None):
        torch.manual_seed(3)
        model = pair(losses=losses)
        following.append((torch.rand(1).item(), model.head.cls_score.weight.detach()))
        assert (len(model.distillation.tap_projectors) == 0) == (losses == {})
    assert following[0][0] == following[1][0] and torch.equal(following[0][1], following[1][1])


@pytest.mark.parametrize(
    "channels, ours, parts",
    [
        (None, 4, ["student's 4 channels", "takes 8 there", "set model.tap_projector_channels=[4, 8]", "conv_dims"]),
        ([6, 8], 4, ["model.tap_projector_channels is [6, 8]", "student's 4 channels", "set it to [4, 8]."]),
        ([4, 8], 8, ["model.tap_projector_channels is [4, 8]", "student's 8 channels", "set it to [8, 8], or null."]),
    ],
)
def test_widths_that_do_not_fit_are_refused(channels, ours, parts):
    model = pair(channels=channels, ours=ours)
    with pytest.raises(ValueError) as error:
        model.load_teacher()
    assert all(part in str(error.value) for part in ["model.losses.crosskd_cls (tail=1)", *parts])


@pytest.mark.parametrize("channels", [8, [8], [8, 0], "48", [4.0, 8]])
def test_channels_that_mean_nothing_are_refused(channels):
    with pytest.raises(ValueError, match="model.tap_projector_channels is .*expected the student's channels"):
        pair(channels=channels)


def test_resuming_restores_them():
    model, other = pair(), pair()
    sum(run_step(model, make_batch()).values()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    other.load_state_dict(model.state_dict())
    a, b = (x.distillation.tap_projectors["cls_1"].weight for x in (model, other))
    assert torch.equal(a, b)
