"""One head for the dense detectors of the papers: two towers, predictors, and what some families add to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from torch import Tensor, nn

from d2kd.modeling.detectors.interface import check_level

__all__ = ["DenseHead", "Norm", "Scale"]

#: A norm as Detectron2's ``norm=`` arguments take it: its name, or what makes it from the number of channels.
Norm = str | Callable[[int], nn.Module] | None

_BRANCHES = ("cls", "box")


class Scale(nn.Module):
    """Multiplies its input by one learned number, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DenseHead(nn.Module):
    """
    Two towers shared by all levels, one for classes and one for boxes, with a predictor or two on each.

    The parts are named as in Detectron2's ``RetinaNetHead`` and ``FCOSHead``, in whose place it can stand. It differs
    in three things: a tower's convolutions have a bias only where no norm follows them; boxes may be predicted as
    distributions; a level's box predictions may be multiplied by a learned number of its own.

    Args:
        input_shape: of the levels' features, all of the same channels.
        num_classes: K.
        conv_dims: channels of each tower's 3x3 convolutions.
        num_anchors: A, anchors of a cell.
        norm: after each convolution of the towers but not the predictors, as Detectron2's: "" (none), "GN" (32
            groups), a callable such as :func:`d2kd.modeling.backbones.group_norm`. "BN" and "SyncBN" keep statistics of
            their own for each level.
        prior_prob: the initial score of every class.
        reg_max: n of a distribution of n + 1 bins for each side of a box, left, top, right, bottom, over distances of
            0 to n strides; the channels of a box run over anchor, side, bin. None: four numbers a box.
        centerness_on: the tower that centerness is predicted from, "box" or "cls"; None: no centerness.
        scale_levels: whether each level's box predictions are multiplied by a learned scale.
        box_activation: "exp": the boxes' four numbers are exp(scaled output), such as FCOS's distances in pixels.

    Raises:
        ValueError: an option that does not exist, or ``box_activation`` together with ``reg_max``.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        conv_dims: Sequence[int],
        num_anchors: int = 1,
        norm: Norm = "",
        prior_prob: float = 0.01,
        reg_max: int | None = None,
        centerness_on: str | None = None,
        scale_levels: bool = False,
        box_activation: str | None = None,
    ) -> None:
        super().__init__()
        if centerness_on not in (None, *_BRANCHES):
            raise ValueError(f"head.centerness_on is {centerness_on!r}, expected 'box', 'cls' or None.")
        if box_activation not in (None, "exp"):
            raise ValueError(f"head.box_activation is {box_activation!r}, expected 'exp' or None.")
        if reg_max is not None and (isinstance(reg_max, bool) or not isinstance(reg_max, int) or reg_max < 1):
            raise ValueError(f"head.reg_max is {reg_max!r}, expected a whole number of at least 1, or None.")
        if reg_max is not None and box_activation is not None:
            raise ValueError(
                f"head.box_activation is {box_activation!r} with head.reg_max {reg_max}: the bins of a distribution "
                "are logits, choose one of the two."
            )
        channels = {shape.channels for shape in input_shape if shape.channels is not None}
        if len(channels) != 1:
            raise ValueError(
                f"head.input_shape has levels of {sorted(channels)} channels, expected the same for all: the towers "
                "are shared by them."
            )
        self.num_levels = len(input_shape)
        self.num_anchors = num_anchors
        self.reg_max = reg_max
        self.centerness_on = centerness_on
        self.box_activation = box_activation

        widths = [*channels, *conv_dims]
        norm = _norm_of_levels(norm, self.num_levels)
        self.cls_subnet = _tower(widths, norm)
        self.bbox_subnet = _tower(widths, norm)
        box_dims = 4 if reg_max is None else 4 * (reg_max + 1)
        self.cls_score = nn.Conv2d(widths[-1], num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(widths[-1], num_anchors * box_dims, 3, padding=1)
        self.ctrness = None if centerness_on is None else nn.Conv2d(widths[-1], num_anchors, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape) if scale_levels else None

        prior = -math.log((1 - prior_prob) / prior_prob)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.constant_(module.bias, prior if module is self.cls_score else 0.0)

    def predict(self, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """
        Run the predictors on one level's outputs of the towers.

        Args:
            level: its index.
            towers_out: "cls" and "box", each (N, C, H, W).

        Returns:
            class logits (N, A*K, H, W), boxes (N, A*4, H, W) or (N, A*4*(n+1), H, W), and centerness logits
            (N, A, H, W) of a head that has them.
        """
        logits = self.cls_score(towers_out["cls"])
        boxes = self.bbox_pred(towers_out["box"])
        if self.scales is not None:
            boxes = self.scales[level](boxes)
        if self.box_activation == "exp":
            boxes = boxes.float().exp()  # in half precision distances beyond 65504 pixels would be infinite
        if self.ctrness is None or self.centerness_on is None:
            return logits, boxes
        return logits, boxes, self.ctrness(towers_out[self.centerness_on])

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """
        Args:
            features: per level, (N, C, H, W).

        Returns:
            lists of per-level maps, in the order and shapes of :meth:`predict`.

        Raises:
            ValueError: not as many levels as the head was built for.
            TypeError: a subclass's :meth:`predict` returns something else.
        """
        if len(features) != self.num_levels:
            raise ValueError(
                f"The head was built for {self.num_levels} levels and got {len(features)}: give the detector's "
                "head_in_features and head.input_shape the same length."
            )
        per_level = []
        for level, x in enumerate(features):
            found = self.predict(level, {"cls": self.cls_subnet(x), "box": self.bbox_subnet(x)})
            per_level.append(check_level(found, type(self).__name__))
        return [list(maps) for maps in zip(*per_level)]


def _norm_of_levels(norm: Norm, num_levels: int) -> Norm:
    """Batch norm with statistics of each level and shared affine parameters, as ``RetinaNetHead``; others as given."""
    if norm not in ("BN", "SyncBN"):
        return norm
    bn_class = nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm
    return lambda channels: CycleBatchNormList(length=num_levels, bn_class=bn_class, num_features=channels)


def _tower(widths: Sequence[int], norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_channels, out_channels in zip(widths, widths[1:]):
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not norm))
        if norm:
            layers.append(get_norm(norm, out_channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
