"""A distilled model that is copied by a moving average of weights, or is inside another module or DDP."""

from copy import deepcopy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers import build_detector, distilled, make_batch, preset, run_step
from tests.nodes import pair
from tests.yacs_projects import assert_same_tensors, assert_same_weights, save

# ---- moving averages of the weights ----------------------------------------------------------------------------------

DECAY = 0.5


class DeepCopyEMA:
    """As most repositories write it: a deep copy of the model that follows it."""

    def __init__(self, model):
        self.module = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model):
        state = model.state_dict()
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                value.lerp_(state[name], 1 - DECAY)
            else:
                value.copy_(state[name])


class TorchEMA(AveragedModel):
    def __init__(self, model):
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.eval()

    def update(self, model):
        self.update_parameters(model)


@pytest.mark.parametrize("when", ["before training", "after a step"])
@pytest.mark.parametrize("ema_class", [DeepCopyEMA, TorchEMA])
def test_an_ema_that_copies_the_model(tmp_path, ema_class, when):
    model = distilled(
        build_detector("RetinaNet", test_score_thresh=0.0),
        build_detector("RetinaNet", seed=1),
        preset("pkd", "RetinaNet"),
    )
    if when == "after a step":  # now the teacher is loaded
        run_step(model, make_batch())
    ema = ema_class(model)
    assert ema.module.teacher is None
    assert ema.module.state_dict().keys() == model.state_dict().keys()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = []
    for step in range(3):
        optimizer.zero_grad()
        losses = run_step(model, make_batch(seed=step), step)
        sum(losses.values()).backward()
        optimizer.step()
        ema.update(model)
        history.append({name: p.detach().clone() for name, p in model.named_parameters()})
        assert losses["loss_kd_pkd"].item() > 0 and model.teacher.is_loaded  # copies took nothing from the original
    # torch starts from the first weights that it is given, a copy from those that it is made of.
    start = history[0] if ema_class is TorchEMA else dict(build_detector("RetinaNet").named_parameters())
    for name, p in ema.module.named_parameters():
        if name.startswith("distillation."):
            continue
        expected = start[name]
        for state in history:
            expected = DECAY * expected + (1 - DECAY) * state[name]
        torch.testing.assert_close(p, expected)

    path = save(ema.module, tmp_path, "ema")
    stock, again = build_detector("RetinaNet", test_score_thresh=0.0, seed=7), pair(seed=8)
    for other in (stock, again):
        DetectionCheckpointer(other).load(path)
        assert_same_weights(other, ema.module)
    boxes = [m.eval()(make_batch())[0]["instances"].pred_boxes.tensor for m in (ema.module, stock)]
    assert len(boxes[0]) > 0 and torch.equal(*boxes)
    model.load_state_dict(ema.module.state_dict())  # back into the run
    run_step(model.train(), make_batch())


# ---- wrappers --------------------------------------------------------------------------------------------------------


class Framework(nn.Module):
    """A training framework's module around the model."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, batch):
        return self.detector(batch)


def trained(model, module, steps=3):
    """``model`` after some steps of ``module``, which is it or has it inside."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        sum(run_step(module.train(), make_batch(seed=step), step).values()).backward()
        optimizer.step()
        module.eval()(make_batch())
    return model


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def scheduled():
    """A loss with parameters of its own, which is off in the first steps."""
    losses = preset("pkd", "RetinaNet", projector_channels=[8, 8])
    losses["pkd"].schedule = lambda where: float(where >= 0.5)
    losses["pkd"].schedule_iters = 3
    return distilled(build_detector("RetinaNet"), build_detector("RetinaNet", seed=1), losses)


@pytest.mark.parametrize("build", [pair, scheduled])
@pytest.mark.parametrize("wrap", [Framework, lambda m: DistributedDataParallel(m, broadcast_buffers=False)])
def test_wrapped_it_trains_as_it_does_alone(process_group, build, wrap):
    alone, inner = build(), build()
    trained(alone, alone)
    module = wrap(inner)
    trained(inner, module)
    assert_same_tensors(alone.state_dict(), inner.state_dict())
    assert not any("teacher" in name for name in module.state_dict())
    assert not any(p is q for p in module.parameters() for q in inner.teacher.detector.parameters())


def test_the_teacher_follows_a_wrapper_to_another_dtype():
    model = pair()
    module = Framework(model)
    run_step(module, make_batch())
    module.double()
    assert {p.dtype for p in model.teacher.detector.parameters()} == {torch.float64}
    assert run_step(module, make_batch())["loss_kd_crosskd_cls"].item() > 0
    assert not any(m.training for m in model.teacher.detector.modules())


def test_data_parallel_is_refused():
    """By what torch asks of each module for a replica; it makes none without two GPUs."""
    with pytest.raises(TypeError, match="does not run in torch.nn.DataParallel.*use DistributedDataParallel"):
        pair()._replicate_for_data_parallel()
