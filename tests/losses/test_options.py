"""Every module over all its options: what it sums over a level is its function with these options and this weight."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from d2kd.losses import (
    LOSS_REGISTRY,
    BinaryClassificationKD,
    CenternessKD,
    ChannelWiseKD,
    DistillationLoss,
    DynamicBoxKD,
    DynamicLocalizationDistillation,
    FeatureImitation,
    IoULocalizationKD,
    LocalizationDistillation,
    PearsonFeatureKD,
    SoftmaxClassificationKD,
    TaskIntegrationKD,
    TemperatureFreeClassificationKD,
    binary_classification_kd,
    centerness_kd,
    channel_wise_kd,
    dynamic_localization_kd,
    feature_imitation,
    iou_localization_kd,
    localization_distillation,
    pearson_kd,
    softmax_classification_kd,
    standardized_difference,
)
from tests.losses.fake_outputs import output, random_maps

#: Not the default of any option: one that is dropped on the way is seen.
CROSSED = dict(source="crossed", tail=2)


def dense(seed: int, family: str) -> SimpleNamespace:
    """Two levels of two images, two anchors a cell; boxes of some size that overlap those of another seed."""
    sizes = [(3, 4), (2, 2)]
    boxes = []
    for level, (h, w) in enumerate(sizes):
        corners = 2 * random_maps(2, 2, h, w, 2, seed=70 + 10 * level + seed)
        boxes.append(torch.cat([corners, corners + 8 + random_maps(2, 2, h, w, 2, seed=90 + level + seed)], dim=-1))
    coding = (4, 5) if family == "distribution" else (4,)
    return output(
        rectified=family == "rectified",
        logits=[2 * random_maps(2, 2, 3, h, w, seed=seed + 10 * i) for i, (h, w) in enumerate(sizes)],
        box_params=[2 * random_maps(2, 2, *coding, h, w, seed=seed + 30 + i) for i, (h, w) in enumerate(sizes)],
        centerness=[random_maps(2, 2, h, w, seed=seed + 40 + i) for i, (h, w) in enumerate(sizes)],
        features=[random_maps(2, 6, h, w, seed=seed + 50 + i) for i, (h, w) in enumerate(sizes)],
        boxes=boxes,
    )


def mean_of(per_edge: Tensor, region: Tensor) -> Tensor:
    """Of edges or coordinates (N, A, 4, H, W): the mean of a location's four, weighted."""
    return (per_edge.mean(dim=2) * region).sum()


def laplace(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """The formula of d2kd.losses.laplace_kl, of each coordinate."""
    distance = (ours - theirs).abs() / temperature
    return temperature * (torch.exp(-distance) + distance - 1)


def std_of(bins: Tensor, kappa: float, t_min: float, t_max: float) -> Tensor:
    return (kappa * bins.std(dim=3, keepdim=True, unbiased=False)).clamp(t_min, t_max)


def of_regions(weights: dict[str, float], ours: Tensor, theirs: Tensor, region: Tensor) -> Tensor:
    cells = standardized_difference(ours, theirs, correction=0)
    return torch.stack(
        [weights[name] * (w * cells).sum() for name, w in zip(("weak", "key", "rest"), region.squeeze(2))]
    )


# Loss, its options, the coding of boxes, and its function of (student, teacher, level, region).
CASES: list[tuple[type[DistillationLoss], dict, str, Callable[..., Tensor]]] = [
    *(
        (
            BinaryClassificationKD,
            dict(beta=beta, **more),
            "plain",
            lambda s, t, i, w, beta=beta: binary_classification_kd(
                s.logits[i], t.logits[i], beta=beta, weight=w, dim=2, reduction="sum"
            ),
        )
        for beta in (0.5, 1.0, 2.0)
        for more in ({}, CROSSED)
    ),
    *(
        (
            IoULocalizationKD,
            dict(iou_type=kind, **more),
            "plain",
            lambda s, t, i, w, kind=kind: iou_localization_kd(
                s.boxes[i], t.boxes[i], iou_type=kind, weight=w, reduction="sum"
            ),
        )
        for kind in ("giou", "iou", "neg_log_iou")
        for more in ({}, CROSSED)
    ),
    (
        CenternessKD,
        {},
        "plain",
        lambda s, t, i, w: centerness_kd(s.centerness[i], t.centerness[i], weight=w, reduction="sum"),
    ),
    *(
        (
            LocalizationDistillation,
            dict(temperature=temperature, bin_reduction=bins),
            "distribution",
            lambda s, t, i, w, temperature=temperature, bins=bins: mean_of(
                localization_distillation(
                    s.box_params[i], t.box_params[i], temperature=temperature, bin_reduction=bins, dim=3
                ),
                w,
            ),
        )
        for temperature in (1.0, 3.0)
        for bins in ("mean", "sum")
    ),
    *(
        (
            SoftmaxClassificationKD,
            dict(temperature=temperature),
            "plain",
            lambda s, t, i, w, temperature=temperature: softmax_classification_kd(
                s.logits[i], t.logits[i], temperature=temperature, weight=w, dim=2, reduction="sum"
            ),
        )
        for temperature in (0.5, 8.0)
    ),
    (
        SoftmaxClassificationKD,
        dict(tuned_for_classes=12),
        "plain",
        # Three classes: the mean over them counts a quarter.
        lambda s, t, i, w: (
            softmax_classification_kd(s.logits[i], t.logits[i], weight=w, dim=2, reduction="sum") * 3 / 12
        ),
    ),
    *(
        (
            TemperatureFreeClassificationKD,
            dict(kind="sigmoid+pearson", eta=eta, beta=beta),
            "plain",
            lambda s, t, i, w, eta=eta, beta=beta: torch.stack(
                [
                    binary_classification_kd(s.logits[i], t.logits[i], beta=beta, weight=w[0], dim=2, reduction="sum"),
                    eta * pearson_kd(s.logits[i], t.logits[i], weight=w[1], dim=2, reduction="sum"),
                ]
            ),
        )
        for eta, beta in ((0.25, 1.0), (3.0, 2.0))
    ),
    *(
        (
            DynamicLocalizationDistillation,
            dict(kind="std", kappa=kappa, t_min=t_min, t_max=t_max),
            "distribution",
            lambda s, t, i, w, options=(kappa, t_min, t_max): mean_of(
                dynamic_localization_kd(
                    s.box_params[i], t.box_params[i], temperature=std_of(t.box_params[i], *options), dim=3
                ),
                w,
            ),
        )
        # The bounds of the last two are met; what lies between them in the first is kappa's.
        for kappa, t_min, t_max in ((2.0, 0.01, 50.0), (1.0, 3.0, 4.0), (1.0, 0.1, 0.5))
    ),
    (
        DynamicLocalizationDistillation,
        dict(kind="fixed", temperature=3.0),
        "distribution",
        lambda s, t, i, w: mean_of(
            dynamic_localization_kd(s.box_params[i], t.box_params[i], temperature=3.0, dim=3), w
        ),
    ),
    (
        DynamicLocalizationDistillation,
        dict(kind="learned", t_start=2.0, t_span=5.0),
        "distribution",
        lambda s, t, i, w: mean_of(
            dynamic_localization_kd(
                s.box_params[i], t.box_params[i], temperature=2 + 5 * torch.ones(()).sigmoid().item(), dim=3
            ),
            w,
        ),
    ),
    *(
        (
            DynamicBoxKD,
            dict(kind="fixed", temperature=temperature),
            family,
            lambda s, t, i, w, temperature=temperature, read=read: mean_of(
                laplace(read(s.box_params[i]), read(t.box_params[i]), temperature), w
            ),
        )
        for temperature in (0.3, 2.0)
        for family, read in (("plain", torch.clone), ("rectified", torch.relu))
    ),
    (
        FeatureImitation,
        {},
        "plain",
        lambda s, t, i, w: feature_imitation(s.features[i], t.features[i], weight=w.squeeze(1), reduction="sum"),
    ),
    (
        PearsonFeatureKD,
        {},
        "plain",
        lambda s, t, i, w: standardized_difference(s.features[i], t.features[i], weight=w.squeeze(1), reduction="sum"),
    ),
    *(
        (
            ChannelWiseKD,
            dict(temperature=temperature),
            "plain",
            lambda s, t, i, w, temperature=temperature: channel_wise_kd(
                s.features[i], t.features[i], temperature=temperature, weight=w.squeeze(1), reduction="sum"
            ),
        )
        for temperature in (0.5, 4.0)
    ),
    (
        TaskIntegrationKD,
        dict(region_weights=dict(key=0.5, weak=3.0, rest=0.25)),
        "plain",
        lambda s, t, i, w: of_regions(dict(weak=3.0, key=0.5, rest=0.25), s.features[i], t.features[i], w),
    ),
]


def name_of(case: tuple) -> str:
    return f"{case[0].__name__}-{case[2]}-{'-'.join(f'{name}={value}' for name, value in case[1].items())}"


@pytest.mark.parametrize("share", [0.1, 1.0], ids=["few", "all"])
@pytest.mark.parametrize("loss, options, family, function", CASES, ids=map(name_of, CASES))
def test_a_module_is_its_function_with_its_options(loss, options, family, function, share):
    """In a region of few locations too, which alone are then looked at."""
    module, source, teacher = loss(**options), dense(1, family), dense(2, family)
    several = () if len(module.regions) == 1 else (len(module.regions),)
    anchors = 1 if module.task == "feature" else 2
    for level, logits in enumerate(source.logits):
        shape = *several, 2, anchors, *logits.shape[-2:]
        draw = torch.rand(2, *shape, generator=torch.Generator().manual_seed(level), dtype=torch.float64)
        region = draw[0] * (draw[1] < share)
        region.flatten()[0] = 0.5
        found, expected = module.level_loss(source, teacher, level, region), function(source, teacher, level, region)
        assert expected.abs().min() > 1e-4 or share < 1
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=1e-9)


def test_every_module_is_looked_at():
    assert {case[0].__name__ for case in CASES} == {name for name, _ in LOSS_REGISTRY}


#: What is tested elsewhere: where and when a loss teaches, what it keeps from step to step, and what pairing reads.
ELSEWHERE = {
    *(name for name in inspect.signature(DistillationLoss).parameters),
    *("quality_region", "projector_channels", "combine", "min_teacher_score"),
    *("momentum", "learn_iters"),
}


@pytest.mark.parametrize("loss", sorted({case[0] for case in CASES}, key=lambda loss: loss.__name__))
def test_every_option_is_looked_at(loss):
    """With another value than its default."""
    for kind in loss.__mro__[: loss.__mro__.index(nn.Module)]:
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY or name in ELSEWHERE:
                continue
            if loss is DynamicBoxKD and name in ("t_min", "t_max"):  # bounds of what it keeps: test_dynamic_box.py
                continue
            values = [options[name] for cls, options, *_ in CASES if cls is loss and name in options]
            assert any(value != parameter.default for value in values), name
