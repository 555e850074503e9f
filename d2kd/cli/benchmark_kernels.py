"""d2kd's kernels, and what they are compared with: each paper's formula in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from detectron2.config import instantiate
from fvcore.nn import giou_loss
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from d2kd.cli.benchmark_data import Size, build_pair
from d2kd.cli.benchmark_measure import Case
from d2kd.losses import (
    BinaryClassificationKD,
    ChannelWiseKD,
    DistillationLoss,
    DynamicBoxKD,
    IoULocalizationKD,
    LocalizationDistillation,
    PearsonFeatureKD,
    align_statistics,
)
from d2kd.methods import get_losses
from d2kd.modeling.adapters import get_adapter
from d2kd.modeling.detectors import DistributionBoxes
from d2kd.modeling.detectors.interface import box_transform_of, make_anchors, strides_of
from d2kd.structures import DenseOutput

__all__ = ["CHECKPOINTED", "KERNELS", "SHIPPED", "TEXTBOOK", "Kernel", "kernel_cases"]

SHIPPED, TEXTBOOK, CHECKPOINTED = "d2kd", "textbook", "textbook, checkpointed"

#: Levels of one kind of map.
Maps = Sequence[Tensor]


@dataclass(frozen=True)
class Kernel:
    """
    One kernel on random maps.

    Attributes:
        student: the maps that get a gradient, of one or two kinds, per level.
        shipped: d2kd's loss of them.
        textbook: the paper's formula of one level: (level, its map of each kind) -> scalar.
    """

    student: Sequence[Maps]
    shipped: Callable[[Sequence[Maps]], Tensor]
    textbook: Callable[..., Tensor]


def kernel_cases(kernel: Kernel) -> list[Case]:
    """As d2kd ships it, the textbook's formula, and that under torch's checkpointing; forward and backward."""

    def textbook(maps: Sequence[Maps]) -> Tensor:
        return torch.stack([kernel.textbook(level, *of_level) for level, of_level in enumerate(zip(*maps))]).sum()

    def checkpointed(maps: Sequence[Maps]) -> Tensor:
        run = partial(checkpoint, kernel.textbook, use_reentrant=False)
        return torch.stack([run(level, *of_level) for level, of_level in enumerate(zip(*maps))]).sum()

    def leaves() -> list[Maps]:
        return [[x.detach().requires_grad_() for x in maps] for maps in kernel.student]

    def train(form: Callable[[Sequence[Maps]], Tensor], maps: Sequence[Maps]) -> None:
        form(maps).backward()

    forms = {SHIPPED: kernel.shipped, TEXTBOOK: textbook, CHECKPOINTED: checkpointed}
    return [Case(name, partial(train, form), leaves) for name, form in forms.items()]


@dataclass(frozen=True)
class Data:
    """Random maps of the strides 8 to 128 of ``size``'s images, on a device."""

    size: Size
    device: torch.device

    def maps(self, *channels: int, mean: float = 0.0) -> list[Tensor]:
        """Normal numbers, (N, *channels, H, W) per level."""
        height, width = self.size.canvas
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
        return [torch.randn(self.size.images, *channels, *size, device=self.device) + mean for size in sizes]

    def everywhere(self) -> list[Tensor]:
        """The region of feature losses, (N, 1, H, W) per level."""
        return [torch.ones_like(x) for x in self.maps(1)]

    def weights(self, anchors: int, share: float = 1.0) -> list[Tensor]:
        """A region, (N, A, H, W) per level: weights up to 1 at this share of the locations, 0 elsewhere."""
        maps = self.maps(anchors)
        return [torch.rand_like(x) * (torch.rand_like(x) < share) for x in maps]


def _output(logits: Maps = (), box_params: Maps = (), features: Maps = ()) -> DenseOutput:
    def decode(params: Tensor, anchors: Tensor, level: int) -> Tensor:
        raise NotImplementedError

    return DenseOutput(list(logits), list(box_params), anchors=[], decode=decode, features=list(features))


def _kernel_of(
    loss: DistillationLoss,
    kind: str,
    pair: tuple[Maps, Maps],
    weights: Maps,
    formula: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Kernel:
    """
    Of a loss that reads one kind of map.

    Args:
        kind: the field of a dense output.
        pair: the student's and the teacher's maps.
        weights: the loss's region.
        formula: (student, teacher, weights) of a level -> scalar.
    """
    student, teacher = pair
    return Kernel(
        [student],
        lambda maps: loss(_output(**{kind: maps[0]}), _output(**{kind: teacher}), weights).sum(),
        lambda level, x: formula(x, teacher[level], weights[level]),
    )


def classification(data: Data, anchors: int) -> Kernel:
    """BCKD's and CrossKD's: |p - q| BCE(p, q), sum over classes."""

    def formula(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        target = teacher.sigmoid()
        gap = (student.sigmoid() - target).abs()
        loss = F.binary_cross_entropy_with_logits(student, target, reduction="none") * gap
        return (loss.sum(dim=2) * weight).sum()

    student, teacher = (data.maps(anchors, data.size.classes, mean=-3) for _ in range(2))
    return _kernel_of(BinaryClassificationKD(), "logits", (student, teacher), data.weights(anchors), formula)


def _scores(x: Tensor) -> Tensor:
    """Standard scores of each channel."""
    return (x - x.mean(dim=(0, 2, 3), keepdim=True)) / (x.std(dim=(0, 2, 3), keepdim=True) + 1e-6)


def pkd(data: Data) -> Kernel:
    """Half the squared difference of standard scores, mean over channels."""

    def formula(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        difference = F.mse_loss(_scores(student), _scores(teacher), reduction="none") / 2
        return (difference.mean(dim=1, keepdim=True) * weight).sum()

    student, teacher = (data.maps(data.size.channels) for _ in range(2))
    return _kernel_of(PearsonFeatureKD(), "features", (student, teacher), data.everywhere(), formula)


def alignment(data: Data) -> Kernel:
    """CrossKD's: the student's standard scores in the teacher's statistics, then a ReLU."""
    student, teacher, gradient = (data.maps(data.size.channels) for _ in range(3))

    def shipped(level: int, x: Tensor) -> Tensor:
        return align_statistics(x, teacher[level], rectify=True)

    def formula(level: int, x: Tensor) -> Tensor:
        t = teacher[level]
        return F.relu(_scores(x) * t.std(dim=(0, 2, 3), keepdim=True) + t.mean(dim=(0, 2, 3), keepdim=True))

    def total(aligned: Callable[[int, Tensor], Tensor], level: int, x: Tensor) -> Tensor:
        return aligned(level, x).flatten() @ gradient[level].flatten()

    return Kernel(
        [student],
        lambda maps: torch.stack([total(shipped, level, x) for level, x in enumerate(maps[0])]).sum(),
        partial(total, formula),
    )


def dynamic_box(data: Data) -> Kernel:
    """
    FTPD's box term on RetinaNet, at the median distance of each coordinate.

    The textbook's is ``torch.median`` of each level, without the weights: a weighted median is a sort in plain torch,
    which alone takes as long as four times the rest. Bounds close to 0.1 give both the same T.
    """
    bounds = 0.1 - 1e-9, 0.1

    def formula(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        distance = (student - teacher).abs()
        medians = distance.detach().movedim(2, 0).flatten(1).median(dim=1).values
        t = medians.clamp(*bounds).view(4, 1, 1)
        loss = t * (torch.exp(-distance / t) + distance / t - 1)
        return (loss.mean(dim=2) * weight).sum()

    student, teacher = (data.maps(9, 4) for _ in range(2))
    loss = DynamicBoxKD(t_min=bounds[0], t_max=bounds[1]).to(data.device)
    return _kernel_of(loss, "box_params", (student, teacher), data.weights(9), formula)


def _kl(student: Tensor, teacher: Tensor, dim: int, temperature: float = 1.0) -> Tensor:
    log_q, p = (student / temperature).log_softmax(dim), (teacher / temperature).softmax(dim)
    return F.kl_div(log_q, p, reduction="none").sum(dim) * temperature**2


def distribution_kl(data: Data) -> Kernel:
    """CrossKD's box term on GFL, at all locations."""

    def formula(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        return (_kl(student, teacher, dim=3).mean(dim=2) * weight).sum()

    student, teacher = (data.maps(1, 4, 17) for _ in range(2))
    loss = LocalizationDistillation(temperature=1.0, bin_reduction="sum")
    return _kernel_of(loss, "box_params", (student, teacher), data.weights(1), formula)


def cwd(data: Data) -> Kernel:
    """KL between the softmaxes of a channel over its cells, mean over channels."""

    def formula(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        log_q, p = student.flatten(2).log_softmax(dim=2), teacher.flatten(2).softmax(dim=2)
        return (F.kl_div(log_q, p, reduction="none").mean(dim=1, keepdim=True) * weight.flatten(2)).sum()

    student, teacher = (data.maps(data.size.channels) for _ in range(2))
    return _kernel_of(ChannelWiseKD(), "features", (student, teacher), data.everywhere(), formula)


def decode_giou(data: Data, family: str) -> Kernel:
    """From the head's box maps to GIoU, BCKD's box term. The textbook's: Detectron2's decoding, fvcore's GIoU."""
    size = replace(data.size, classes=1, depths=(18, 18))  # one class for the logits, which nothing reads
    detector, _ = build_pair(family, size, data.device)
    adapter, loss = get_adapter(detector), IoULocalizationKD()
    cells = data.maps(1)
    anchors = make_anchors(detector, cells)
    count = len(anchors[0]) // cells[0][0].numel()
    bins = detector.bins if isinstance(detector, DistributionBoxes) else 1
    student, teacher, logits = (data.maps(count * channels) for channels in (4 * bins, 4 * bins, 1))
    weights = data.weights(count)

    def shipped(maps: Sequence[Maps]) -> Tensor:
        source, target = (adapter.dense_output(detector, [logits, boxes], anchors) for boxes in (maps[0], teacher))
        return loss(source, target, weights).sum()

    def boxes(level: int, x: Tensor) -> Tensor:
        x = x.unflatten(1, (count, 4, bins))
        if bins > 1:
            numbers = torch.arange(bins, device=x.device).view(-1, 1, 1)
            x = (x.softmax(dim=3) * numbers).sum(dim=3, keepdim=True) * strides_of(detector)[level]
        deltas = x.squeeze(3).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        return box_transform_of(detector).apply_deltas(deltas, anchors[level].tensor.repeat(size.images, 1))

    def formula(level: int, x: Tensor) -> Tensor:
        giou = giou_loss(boxes(level, x), boxes(level, teacher[level]), reduction="none")
        return (giou * weights[level].permute(0, 2, 3, 1).flatten()).sum()

    return Kernel([student], shipped, formula)


def ld(data: Data) -> Kernel:
    """LD's three terms on GFL; 1 % of the locations are positive and 5 % in the valuable localisation region."""
    nodes = {name: node for name, node in get_losses("ld", "GFL").items() if node.weight > 0}
    losses = {name: instantiate(node) for name, node in nodes.items()}
    main, valuable = data.weights(1, 0.01), data.weights(1, 0.05)
    regions = {"ld_main": main, "ld_vlr": valuable, "ld_main_kd": main}
    student, teacher = ([data.maps(1, data.size.classes), data.maps(1, 4, 17)] for _ in range(2))

    def shipped(maps: Sequence[Maps]) -> Tensor:
        source, target = _output(*maps), _output(*teacher)
        return torch.stack([loss(source, target, regions[name]).sum() for name, loss in losses.items()]).sum()

    def rows(x: Tensor, mask: Tensor) -> Tensor:
        """(N, A, ..., H, W) -> (M, ...)"""
        return x.movedim((-2, -1), (2, 3))[mask]

    def formula(level: int, logits: Tensor, bins: Tensor) -> Tensor:
        terms = []
        for name, loss in losses.items():
            weight = regions[name][level]
            mask = weight > 0
            student_map, kind = (logits, 0) if name == "ld_main_kd" else (bins, 1)
            kl = _kl(rows(student_map, mask), rows(teacher[kind][level], mask), -1, loss.temperature)
            per_location = kl.unsqueeze(-1).flatten(1).mean(dim=1) / (
                student_map.shape[3] if kind else loss.tuned_for_classes
            )
            terms.append((per_location * weight[mask]).sum())
        return torch.stack(terms).sum()

    return Kernel(student, shipped, formula)


#: What the table calls them -> what makes them.
KERNELS: Mapping[str, Callable[[Data], Kernel]] = {
    "classification, GFL": partial(classification, anchors=1),
    "classification, RetinaNet": partial(classification, anchors=9),
    "PKD": pkd,
    "alignment with ReLU": alignment,
    "FTPD's box term with its running median": dynamic_box,
    "KL of distributions": distribution_kl,
    "CWD": cwd,
    "decode and GIoU, RetinaNet": partial(decode_giou, family="retinanet"),
    "decode and GIoU, GFL": partial(decode_giou, family="gfl"),
    "LD's three terms": ld,
}
