import itertools

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from torch import nn

from d2kd.engine import Trainer
from d2kd.modeling.backbones import FrozenStatisticsBatchNorm2d, group_norm
from tests.helpers import build_detector, distilled, make_batch


class Model(nn.Module):
    """Two losses of one linear layer; remembers the dtype that its forward computed in."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        nn.init.constant_(self.linear.weight, 0.5)
        self.scale = scale

    def forward(self, x):
        y = self.linear(x)
        self.dtype = y.dtype
        return {"loss_a": self.scale * y.float().square().mean(), "loss_b": y.float().abs().mean()}


def train(cls=Trainer, steps=3, scale=1.0, lr=0.1, prepare=lambda trainer: None, **kwargs):
    torch.manual_seed(0)
    model = Model(scale)
    data = [torch.randn(5, 4) for _ in range(steps)]
    trainer = cls(model, itertools.cycle(data), torch.optim.SGD(model.parameters(), lr=lr), **kwargs)
    prepare(trainer)
    trainer.train(0, steps)
    return trainer


def weight(trainer):
    return trainer.model.linear.weight.detach()


def test_without_options_equals_simple_trainer():
    assert torch.equal(weight(train()), weight(train(SimpleTrainer)))


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_clipping_bounds_the_step_of_all_parameters_together(norm_type):
    clip = {"max_norm": 0.25, "norm_type": norm_type}
    start, end = train(steps=0), train(steps=1, scale=1e3, lr=1.0, clip_grad=clip)
    before, after = (nn.utils.parameters_to_vector(t.model.parameters()) for t in (start, end))
    assert (before - after).norm(norm_type).item() == pytest.approx(0.25, rel=1e-4)
    assert end.storage.history("grad_norm").latest() > 100


def test_clipping_reads_all_groups_of_the_optimizer():
    """Detectron2 makes several as soon as norms have a weight decay of their own."""

    def split(trainer):
        groups = [{"params": [p]} for p in trainer.model.parameters()]
        trainer.optimizer = torch.optim.SGD(groups, lr=0.1)

    clip = {"max_norm": 0.25}
    apart, together = train(scale=1e3, clip_grad=clip, prepare=split), train(scale=1e3, clip_grad=clip)
    assert len(apart.optimizer.param_groups) == 2
    for found, expected in zip(apart.model.parameters(), together.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    norms = [trainer.storage.history("grad_norm").latest() for trainer in (apart, together)]
    assert norms[0] == norms[1] > 10


def test_clipping_leaves_small_gradients():
    assert torch.equal(weight(train(clip_grad={"max_norm": 1e6})), weight(train()))


def test_clipping_sees_unscaled_gradients():
    def scale_losses(trainer):  # what float16 does on a GPU
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    clip = {"max_norm": 0.05}
    scaled, plain = train(clip_grad=clip, prepare=scale_losses), train(clip_grad=clip)
    torch.testing.assert_close(weight(scaled), weight(plain), rtol=1e-5, atol=1e-6)


def test_bfloat16_on_cpu():
    trainer = train(amp_dtype=torch.bfloat16)
    assert trainer.model.dtype == torch.bfloat16
    assert weight(trainer).dtype == torch.float32 and weight(trainer).isfinite().all()
    assert not torch.equal(weight(trainer), weight(train(steps=0)))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"amp_dtype": torch.float16}, "float16 mixed precision needs a GPU.*train.amp.dtype=bfloat16"),
        ({"amp_dtype": torch.float64}, "amp_dtype is torch.float64"),
        ({"clip_grad": {"max_norm": 0.0}}, "train.clip_grad"),
        ({"clip_grad": {"norm_type": 2.0}}, "train.clip_grad"),
        ({"clip_grad": {"max_norm": 1.0, "value": 3}}, "train.clip_grad"),
        ({"gather_metric_period": 0}, "train.trainer.gather_metric_period is 0"),
        ({"accumulate": 1.5}, "train.accumulate is 1.5"),
        ({"accumulate": 2}, "train.accumulate needs a model with a backbone, and Model has none"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        train(**kwargs)


def test_state_has_the_scaler():
    scaled = train(steps=1)
    scaled.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = scaled.state_dict()
    assert {"iteration", "optimizer", "grad_scaler"} <= set(state)

    resumed = train(steps=0)
    resumed.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    resumed.load_state_dict(state)
    assert resumed.grad_scaler.get_scale() == 8.0
    resumed.load_state_dict(train(steps=1).state_dict())  # of a run that did not scale
    assert resumed.grad_scaler.get_scale() == 8.0


def test_non_finite_loss_stops_before_the_step():
    trainers = []
    with pytest.raises(FloatingPointError, match="loss_a"):
        train(scale=float("nan"), prepare=trainers.append)
    assert weight(trainers[0]).isfinite().all()


def test_model_left_in_eval_mode():
    with pytest.raises(RuntimeError, match="eval mode"):
        train(prepare=lambda trainer: trainer.model.eval())


def test_an_infinite_gradient_of_finite_losses_stops_before_the_step():
    def infinite(trainer):
        trainer.model.linear.bias.register_hook(lambda grad: torch.full_like(grad, float("inf")))

    held = []
    told = r"the gradient's norm \(of 1 parameters, first 'linear.bias'\)\. Iteration 0, rank 0: the losses are finite"
    with pytest.raises(FloatingPointError, match=told):
        train(clip_grad={"max_norm": 1.0}, prepare=lambda trainer: (infinite(trainer), held.append(trainer)))
    assert torch.equal(weight(held[0]), weight(train(steps=0)))


# ---- metrics ---------------------------------------------------------------------------------------------------------


def logged(trainer, name="loss_a"):
    return [iteration for _, iteration in trainer.storage.history(name).values()]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_metrics_are_gathered_as_often_as_asked(asynchronous, monkeypatch):
    gathered = []
    monkeypatch.setattr(comm, "gather", lambda data: gathered.append(data) or [data])
    plain = train(steps=7)
    assert logged(plain) == list(range(7)) and len(gathered) == 7
    gathered.clear()
    trainer = train(steps=7, gather_metric_period=3, async_write_metrics=asynchronous)
    assert logged(trainer) == [2, 5] and len(gathered) == 2
    assert trainer.storage.history("total_loss").latest() == plain.storage.history("total_loss").values()[5][0]
    assert torch.equal(weight(trainer), weight(plain))


def test_metrics_of_the_last_step_are_there_when_writers_close():
    class Slow(Trainer):
        def _write_metrics(self, *args, **kwargs):
            torch.linalg.svd(torch.ones(300, 300))  # longer than the rest of the step
            super()._write_metrics(*args, **kwargs)

    seen = []

    def watch(trainer):
        trainer.register_hooks([Closing()])

    class Closing(HookBase):
        def after_train(self):
            seen.extend(logged(self.trainer))

    train(Slow, steps=2, async_write_metrics=True, prepare=watch)
    assert seen == [0, 1]


@pytest.mark.parametrize("before", [False, True])
def test_gradients_are_zeroed_where_asked(before):
    held = []

    def watch(trainer):
        trainer.model.register_forward_pre_hook(lambda model, _: held.append(model.linear.weight.grad is not None))

    trainer = train(steps=3, zero_grad_before_forward=before, prepare=watch)
    assert held == ([False] * 3 if before else [False, True, True])
    assert torch.equal(weight(trainer), weight(train()))


def test_a_loss_that_is_not_finite_stops_between_two_gatherings():
    def spoil(trainer):
        trainer.model.register_forward_pre_hook(lambda model, _: setattr(model, "scale", scales.pop()))

    scales, held = [1.0, float("inf"), 1.0], []
    with pytest.raises(FloatingPointError, match="Not finite: loss_a"):
        train(gather_metric_period=100, prepare=lambda trainer: (spoil(trainer), held.append(trainer)))
    assert torch.equal(weight(held[0]), weight(train(steps=1))) and held[0].iter == 1


# ---- gradient accumulation -------------------------------------------------------------------------------------------

SIZES = [(40, 48), (32, 60), (64, 64), (48, 40)]
OBJECTS = [1, 3, 0, 2]  # so that no part's normalisers are the batch's


def accumulated(family, method, accumulate, norm="FrozenBN", **kwargs):
    """Losses and weights after two steps, and the sizes of the parts that the backbone saw."""
    student = build_detector(family, backbone_norm=norm)
    model = student if method is None else distilled(student, build_detector(family, seed=1, width=8), method)
    parts = []
    stem = model.backbone.bottom_up.stem
    stem.register_forward_pre_hook(lambda _, inputs: parts.append(len(inputs[0])))
    batches = iter([make_batch(SIZES, OBJECTS, seed=seed) for seed in (0, 1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    trainer = Trainer(model, batches, optimizer, accumulate=accumulate, **kwargs)
    trainer.train(0, 2)
    assert "forward" not in vars(model.backbone)
    losses = {k: h.values() for k, h in trainer.storage.histories().items() if "loss" in k or k == "grad_norm"}
    return {k: [v for v, _ in values] for k, values in losses.items()}, dict(model.state_dict()), parts


@pytest.mark.parametrize(
    "family, method, norm",
    [
        ("RetinaNet", None, group_norm(num_groups=4)),
        ("FCOS", "bckd", "FrozenBN"),
        ("GFL", "ld", FrozenStatisticsBatchNorm2d),
        ("RetinaNet", "crosskd", "FrozenBN"),
    ],
)
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients_are_those_of_the_large_batch(family, method, norm, accumulate):
    kwargs = {"norm": norm, "clip_grad": {"max_norm": 1.0}}
    losses, weights, parts = accumulated(family, method, accumulate, **kwargs)
    expected, large, whole = accumulated(family, method, 1, **kwargs)
    assert parts == [2] * 8 and whole == [4, 4]  # three parts of four images are two of two
    assert losses.keys() == expected.keys() and len(losses) > 2
    for name, values in expected.items():
        assert losses[name] == pytest.approx(values, rel=1e-5), name
    start = build_detector(family, backbone_norm=norm).state_dict()
    moved = 0
    for name, value in large.items():
        change = value - start.get(name, 0)
        difference = (weights[name] - value).abs().max().item()
        assert difference <= 1e-4 * change.abs().max().item() + 1e-7 * value.abs().max().item(), name
        moved += bool(name in start and change.abs().max() > 0)
    assert moved > 20


def test_images_are_taken_one_by_one_under_bfloat16():
    losses, _, parts = accumulated("GFL", "bckd", 9, amp_dtype=torch.bfloat16)
    assert parts == [1] * 16
    expected, _, _ = accumulated("GFL", "bckd", 1, amp_dtype=torch.bfloat16)
    assert losses["total_loss"] == pytest.approx(expected["total_loss"], rel=2**-8)  # bfloat16 has no more digits


def test_no_activation_of_the_backbone_is_kept():
    def kept(accumulate):
        model = build_detector("RetinaNet", width=16, backbone_norm="FrozenBN")
        trainer = Trainer(model, None, torch.optim.SGD(model.parameters(), lr=0.0), accumulate=accumulate)
        trainer.reset_data_loader(lambda: itertools.repeat(make_batch(SIZES, OBJECTS)))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            trainer.train(0, 1)
        return sum(sizes)

    assert kept(4) < kept(1) / 2


def test_batch_norm_would_see_a_part_of_the_batch():
    with pytest.raises(ValueError, match=r"backbone.fpn_lateral3.norm \(BatchNorm2d\) the stat"):
        accumulated("RetinaNet", None, 2, norm="BN")
