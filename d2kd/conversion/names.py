"""The name in an OpenMMLab checkpoint of each tensor of a Detectron2 detector."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from d2kd.conversion.families import Family

__all__ = ["OpenMMLabNames", "reorder_anchors"]

_RES = r"backbone\.bottom_up\.res(\d)\.(\d+)\."


class OpenMMLabNames:
    """
    Maps a key of the Detectron2 detector's state dict to the key of OpenMMLab's file.

    Args:
        family: whose predictors they are.
        tower_norm: whether the towers' blocks have a norm between convolution and ReLU.
    """

    def __init__(self, family: Family, *, tower_norm: bool) -> None:
        per_block = 3 if tower_norm else 2  # modules per block in Detectron2's nn.Sequential

        def tower(match: re.Match) -> str:
            block, place = divmod(int(match[2]), per_block)
            name = "cls_convs" if match[1] == "cls" else "reg_convs"
            return f"bbox_head.{name}.{block}.{('conv', 'gn')[place]}.{match[3]}"

        def residual(name: str) -> Callable[[re.Match], str]:
            # res2 is layer1
            return lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}." + m.expand(name)

        self._rules: list[tuple[str, Callable[[re.Match], str]]] = [
            (r"backbone\.bottom_up\.stem\.conv1\.weight", lambda m: "backbone.conv1.weight"),
            (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", lambda m: f"backbone.bn1.{m[1]}"),
            (_RES + r"conv(\d)\.weight", residual(r"conv\3.weight")),
            (_RES + r"conv(\d)\.norm\.(\w+)", residual(r"bn\3.\4")),
            (_RES + r"shortcut\.weight", residual("downsample.0.weight")),
            (_RES + r"shortcut\.norm\.(\w+)", residual(r"downsample.1.\3")),
            # level 3 is the first of the lists
            (r"backbone\.fpn_lateral(\d)\.(\w+)", lambda m: f"neck.lateral_convs.{int(m[1]) - 3}.conv.{m[2]}"),
            (r"backbone\.fpn_output(\d)\.(\w+)", lambda m: f"neck.fpn_convs.{int(m[1]) - 3}.conv.{m[2]}"),
            (r"backbone\.top_block\.p(\d)\.(\w+)", lambda m: f"neck.fpn_convs.{int(m[1]) - 3}.conv.{m[2]}"),
            (r"head\.(cls|bbox)_subnet\.(\d+)\.(\w+)", tower),
            (
                r"head\.(cls_score|bbox_pred|ctrness)\.(\w+)",
                lambda m: f"bbox_head.{family.predictors[m[1]]}.{m[2]}",
            ),
            (r"head\.scales\.(\d+)\.scale", lambda m: f"bbox_head.scales.{m[1]}.scale"),
        ]

    def __call__(self, key: str) -> str:
        """
        Raises:
            KeyError: no rule for this key.
        """
        for pattern, name in self._rules:
            if match := re.fullmatch(pattern, key):
                return name(match)
        raise KeyError(key)


def reorder_anchors(predictor: Tensor, *, ratios: int, scales: int) -> Tensor:
    """
    Channels of a predictor over several anchors: OpenMMLab's anchor is ratio * scales + scale, Detectron2's is
    scale * ratios + ratio. Within an anchor nothing changes.

    Args:
        predictor: (ratios * scales * C, ...) weights or biases of class logits or box deltas.
        ratios: of height to width.
        scales: anchor sizes of one level.

    Returns:
        a tensor of the same shape.
    """
    by_anchor = predictor.unflatten(0, (ratios, scales, -1))
    return by_anchor.transpose(0, 1).flatten(0, 2)
