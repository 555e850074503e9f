"""The architecture of an OpenMMLab detector, read from the names and shapes of its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2kd.conversion.errors import ConversionError
from d2kd.conversion.families import FAMILIES, Family

__all__ = ["Architecture", "read_architecture"]

#: (blocks of each stage, whether they are bottlenecks) -> depth
_DEPTHS: Mapping[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
}


@dataclass(frozen=True)
class Architecture:
    """
    Attributes:
        depth: of the ResNet.
        width: channels of the FPN.
        p6_from: ``"c5"`` (the backbone's last stage) or ``"p5"``.
        p6_channels: channels that P6's convolution reads.
        conv_dims: channels after each block of the towers.
        tower_norm: whether a group norm follows each of their convolutions.
        num_classes: of the classifier.
        reg_max: the last bin of a side's distribution; None where boxes are four numbers.
        anchors: how many ratios and how many scales the anchors of a cell have.
    """

    depth: int
    width: int
    p6_from: str
    p6_channels: int
    conv_dims: tuple[int, ...]
    tower_norm: bool
    num_classes: int
    reg_max: int | None
    anchors: tuple[int, int]


def read_architecture(
    state: Mapping[str, Tensor],
    detector: str,
    *,
    depth: int,
    p6_from: str | None,
    anchors: tuple[int, int] | None = None,
) -> Architecture:
    """
    Args:
        state: the checkpoint's weights.
        detector: a key of :data:`FAMILIES`.
        depth: given by the user; must be that of the file.
        p6_from: given by the user, or by the file's config; None: taken from the weights.
        anchors: ratios and scales that the file's config has; None: those of the family.

    Raises:
        ConversionError: the file is of another family or depth, has no plain ResNet, has deformable stages, lacks
            a key that tells the architecture, or contradicts ``p6_from``.
    """
    family = FAMILIES[detector]
    _check_family(state, detector)
    _refuse_deformable(state)
    found = _depth(state)
    if found != depth:
        raise ConversionError(f"--depth is {depth}, but the file's backbone is a ResNet-{found}: correct it.")
    width = _shape(state, "neck.fpn_convs.0.conv.weight")[0]
    p6_channels = _shape(state, "neck.fpn_convs.3.conv.weight")[1]
    cls = _shape(state, f"bbox_head.{family.predictors['cls_score']}.weight")[0]
    box = _shape(state, f"bbox_head.{family.predictors['bbox_pred']}.weight")[0]
    anchors = anchors or family.anchors
    num_classes, reg_max = _predictions(family, detector, cls, box, anchors[0] * anchors[1])
    tower_norm = "bbox_head.cls_convs.0.gn.weight" in state
    if tower_norm and detector == "retinanet":
        raise ConversionError(
            "The towers of the file's RetinaNet have group norms; those of the published ones have none."
        )
    return Architecture(
        depth=found,
        width=width,
        p6_from=_p6_input(p6_channels, width, _c5_channels(found), p6_from),
        p6_channels=p6_channels,
        conv_dims=_conv_dims(state),
        tower_norm=tower_norm,
        num_classes=num_classes,
        reg_max=reg_max,
        anchors=anchors,
    )


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise ConversionError(f"The file lacks {key}, which tells the architecture of its detector.")
    if state[key].dim() != 4:
        raise ConversionError(f"{key} is {tuple(state[key].shape)}, expected the weights of a convolution.")
    return tuple(state[key].shape)


def _check_family(state: Mapping[str, Tensor], detector: str) -> None:
    def heads(name: str) -> list[str]:
        return [f"bbox_head.{x}.weight" for x in FAMILIES[name].predictors.values()]

    if any(key in state for key in heads(detector)):
        return
    expected = f"--detector is {detector}, but the file lacks {', '.join(heads(detector))}"
    for name in FAMILIES:
        if any(key in state for key in heads(name)):
            raise ConversionError(f"{expected}; it has the predictors of --detector {name}.")
    found = sorted({".".join(key.split(".")[:2]) for key in state})
    raise ConversionError(f"{expected}, and is of no other family that is converted; it has {', '.join(found)}.")


def _refuse_deformable(state: Mapping[str, Tensor]) -> None:
    found = [key for key in state if ".conv_offset" in key]
    if found:
        raise ConversionError(
            "Deformable convolutions (DCN) are not converted; take a teacher without them. The file has "
            f"{', '.join(found)}."
        )


def _depth(state: Mapping[str, Tensor]) -> int:
    blocks = [_count(state, rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight") for stage in (1, 2, 3, 4)]
    bottleneck = "backbone.layer1.0.conv3.weight" in state
    depth = _DEPTHS.get((tuple(blocks), bottleneck))
    if depth is None:
        raise ConversionError(
            f"The file's backbone.layer1 to layer4 have {blocks} {'bottleneck' if bottleneck else 'basic'} blocks, "
            "expected those of a plain ResNet-18, 34, 50 or 101."
        )
    return depth


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """The highest index that ``pattern`` captures, plus one: a gap is a missing key, not a shallower network."""
    return max((int(match[1]) + 1 for match in map(re.compile(pattern).fullmatch, state) if match), default=0)


def _c5_channels(depth: int) -> int:
    return 2048 if depth >= 50 else 512


def _p6_input(channels: int, width: int, c5: int, wanted: str | None) -> str:
    possible = [name for name, size in (("c5", c5), ("p5", width)) if size == channels]
    if wanted in possible or (wanted is None and len(possible) == 1):
        return wanted or possible[0]
    found = f"neck.fpn_convs.3 reads {channels} channels (C5 has {c5}, P5 {width})"
    if wanted is not None or not possible:
        source = wanted.upper() if wanted else "C5 or P5"
        raise ConversionError(f"P6 is read from {source} (--p6-from, or the file's config), but {found}.")
    raise ConversionError(f"{found}, which may be either: add --p6-from c5 or p5.")


def _conv_dims(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks = _count(state, r"bbox_head\.(?:cls|reg)_convs\.(\d+)\.conv\.weight")
    return tuple(_shape(state, f"bbox_head.cls_convs.{block}.conv.weight")[0] for block in range(blocks))


def _predictions(family: Family, detector: str, cls: int, box: int, anchors: int) -> tuple[int, int | None]:
    """(number of classes, last bin) that follow from the predictors' channels."""
    per_side, rest = divmod(box, 4 * anchors)
    if rest or cls % anchors or (per_side > 1) != (detector == "gfl"):
        boxes = "4 x (reg_max + 1)" if detector == "gfl" else "4"
        raise ConversionError(
            f"The predictors of {family.title} have {cls} and {box} channels, expected classes and {boxes} for each "
            f"of {anchors} anchor{'s' if anchors > 1 else ''} a cell."
        )
    return cls // anchors, per_side - 1 if detector == "gfl" else None
