"""What an OpenMMLab checkpoint says of itself beside its weights: its version and the text of its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2kd.conversion.config_text import Unread, find_mapping, read_config_text, select
from d2kd.conversion.errors import ConversionError
from d2kd.conversion.families import STRIDES, Pixels

__all__ = ["Anchors", "Stated", "read_stated"]


@dataclass(frozen=True)
class Anchors:
    """
    Attributes:
        scales: sides of a level's anchors in strides.
        ratios: of height to width.
        offset: of their centers, in strides.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    offset: float

    def sizes(self) -> list[list[float]]:
        """Sides in pixels, level by level."""
        return [[scale * stride for scale in self.scales] for stride in STRIDES]


@dataclass(frozen=True)
class Stated:
    """
    What the file says; None: it does not.

    Attributes:
        version: of MMDetection.
        style: of the ResNet, a key of :data:`STYLES`.
        pixels: what it expects of images.
        anchors: of a detector with anchors.
        stds: what its deltas are multiplied by, four numbers.
        p6_from: "c5" or "p5".
        relu_before_p7: whether P6 passes a ReLU on its way to P7.
        centerness_on_reg, norm_on_bbox: (FCOS) see :func:`convert`.
    """

    version: str | None = None
    style: str | None = None
    pixels: Pixels | None = None
    anchors: Anchors | None = None
    stds: tuple[float, ...] | None = None
    p6_from: str | None = None
    relu_before_p7: bool | None = None
    centerness_on_reg: bool | None = None
    norm_on_bbox: bool | None = None


#: What is converted in one way alone: path below ``model`` -> the values that mean it. Absent means it, too.
_PLAIN: Mapping[str, Sequence[Any]] = {
    "backbone.type": ["ResNet"],
    "backbone.strides": [[1, 2, 2, 2]],
    "backbone.dilations": [[1, 1, 1, 1]],
    "backbone.out_indices": [[0, 1, 2, 3]],
    "backbone.avg_down": [False],
    "backbone.conv_cfg": [None],
    "neck.type": ["FPN"],
    "neck.start_level": [1],
    "neck.num_outs": [5],
    "neck.conv_cfg": [None],
    "neck.act_cfg": [None],
    "neck.upsample_cfg.mode": ["nearest"],
    "bbox_head.conv_cfg": [None],
    "bbox_head.norm_cfg.num_groups": [32],
    "bbox_head.loss_cls.use_sigmoid": [True],
    "bbox_head.strides": [list(STRIDES)],
    "bbox_head.anchor_generator.type": ["AnchorGenerator"],
    "bbox_head.anchor_generator.strides": [list(STRIDES)],
    "bbox_head.anchor_generator.base_sizes": [None, list(STRIDES)],
    "bbox_head.anchor_generator.centers": [None],
    "bbox_head.anchor_generator.scale_major": [True],
    "bbox_head.bbox_coder.target_means": [[0, 0, 0, 0]],
    "bbox_head.bbox_coder.add_ctr_clamp": [False],
}
#: What a head with anchors has in version 1 alone.
_VERSION_1 = ("anchor_ratios", "anchor_scales", "anchor_strides", "octave_base_scale", "target_means", "target_stds")
_HEADS = {
    "gfl": ["GFLHead", "LDHead"],
    "atss": ["ATSSHead"],
    "retinanet": ["RetinaHead", "FreeAnchorRetinaHead", "PISARetinaHead"],
    "fcos": ["FCOSHead"],
}
_CODERS = {
    "gfl": ["DistancePointBBoxCoder"],
    "fcos": ["DistancePointBBoxCoder"],
    "atss": ["DeltaXYWHBBoxCoder"],
    "retinanet": ["DeltaXYWHBBoxCoder"],
}


def read_stated(meta: Mapping[str, Any], detector: str) -> Stated:
    """
    Args:
        meta: what the checkpoint has under "meta".
        detector: a key of :data:`FAMILIES`.

    Raises:
        ConversionError: the file says something that is not converted; both values are named.
    """
    version = meta.get("mmdet_version")
    if isinstance(version, str) and version.partition(".")[0] in ("0", "1"):
        _refuse_version_1(f"meta.mmdet_version={version!r}", detector)
    text = meta.get("config", meta.get("cfg"))
    if text is None:
        return Stated(version=version)
    if not isinstance(text, (str, Mapping)):
        raise ConversionError(
            f"The file's config is a {type(text).__name__}, expected text: to have the published one's facts assumed, "
            "save the file's 'state_dict' alone with torch.save."
        )
    config = read_config_text(text) if isinstance(text, str) else dict(text)
    head_config = select(config, "model.bbox_head")
    for key in _VERSION_1:
        if isinstance(head_config, dict) and key in head_config:
            _refuse_version_1(f"model.bbox_head.{key}={head_config[key]!r}", detector)
    _check_plain(config, detector)
    head = "model.bbox_head"
    return Stated(
        version=version,
        style=_style(config),
        pixels=_pixels(config),
        anchors=_anchors(config, detector) if detector != "fcos" else None,
        stds=_stds(config) if detector in ("atss", "retinanet") else None,
        p6_from=_p6_from(config),
        relu_before_p7=_literal(config, "model.neck.relu_before_extra_convs", bool, False),
        centerness_on_reg=_literal(config, f"{head}.centerness_on_reg", bool, False) if detector == "fcos" else None,
        norm_on_bbox=_literal(config, f"{head}.norm_on_bbox", bool, False) if detector == "fcos" else None,
    )


def _refuse_version_1(said: str, detector: str) -> None:
    """FCOS has no anchors, and its boxes are those of later versions."""
    if detector != "fcos":
        raise ConversionError(
            f"The file is of version 1 of MMDetection ({said}), whose anchors and boxes are a pixel larger "
            "(w = x2 - x1 + 1), expected version 2 or 3: take a file that was trained with one of these."
        )


def _check_plain(config: Mapping[str, Any], detector: str) -> None:
    expected = {
        **_PLAIN,
        "bbox_head.type": _HEADS[detector],
        "bbox_head.bbox_coder.type": _CODERS[detector],
    }
    for part in ("backbone", "neck", "bbox_head"):
        if not isinstance(found := select(config, f"model.{part}"), (dict, type(None))):
            raise _refused(f"model.{part}", found, "one dict of literal values")
    for path, values in expected.items():
        found = select(config, f"model.{path}")
        if isinstance(found, str) and path.endswith(".type"):
            found = found.rpartition(".")[2]  # newer configs name the package, too
        if found is not None and found not in values:
            raise _refused(f"model.{path}", found, " or ".join(map(repr, values)))


def _refused(path: str, found: Any, expected: str) -> ConversionError:
    return ConversionError(f"The file's config has {path}={found!r}, expected {expected}: it is not converted.")


def _literal(config: Mapping[str, Any], path: str, kind: type, default: Any) -> Any:
    """The value at ``path``; OpenMMLab's ``default`` if its parent has none; None if there is no parent."""
    if select(config, path.rpartition(".")[0]) is None:
        return None
    found = select(config, path)
    if found is None:
        return default
    if not isinstance(found, kind):
        raise _refused(path, found, f"a {kind.__name__}")
    return found


def _numbers(value: Any, path: str, count: int | None = None) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    if not numbers or not value or (count is not None and len(value) != count):
        raise _refused(path, value, f"{count or 'some'} numbers")
    return tuple(float(x) for x in value)


def _number(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise _refused(path, value, "a number")
    return float(value)


def _style(config: Mapping[str, Any]) -> str | None:
    style = _literal(config, "model.backbone.style", str, "pytorch")
    if style not in (None, "pytorch", "caffe"):
        raise _refused("model.backbone.style", style, "'pytorch' or 'caffe'")
    return style


def _pixels(config: Mapping[str, Any]) -> Pixels | None:
    """Version 3 normalises in the model, versions 1 and 2 in the data's pipelines."""
    places = {
        "model.data_preprocessor": (select(config, "model.data_preprocessor"), "bgr_to_rgb", False),
        "img_norm_cfg": (select(config, "img_norm_cfg"), "to_rgb", True),
        "Normalize": (find_mapping(dict(config), "Normalize"), "to_rgb", True),
    }
    for place, (found, order, default) in places.items():
        if isinstance(found, Unread):
            raise _refused(place, found, "literal values")
        if isinstance(found, dict) and "mean" in found:
            to_rgb = found.get(order, default)
            if not isinstance(to_rgb, bool):
                raise _refused(f"{place}.{order}", to_rgb, "True or False")
            return Pixels(
                "RGB" if to_rgb else "BGR",
                _numbers(found["mean"], f"{place}.mean", 3),
                _numbers(found.get("std"), f"{place}.std", 3),
            )
    return None


def _anchors(config: Mapping[str, Any], detector: str) -> Anchors | None:
    if select(config, "model.bbox_head") is None:
        return None
    place = "model.bbox_head.anchor_generator"
    found = select(config, place)
    if found is None:
        if detector != "retinanet":
            return None
        found = {"octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}  # OpenMMLab's default
    if not isinstance(found, dict):
        raise _refused(place, found, "a dict of literal values")
    ratios = _numbers(found.get("ratios"), f"{place}.ratios")
    if (scales := found.get("scales")) is not None:
        scales = _numbers(scales, f"{place}.scales")
    else:
        base = _number(found.get("octave_base_scale"), f"{place}.octave_base_scale")
        per_octave = found.get("scales_per_octave")
        if not isinstance(per_octave, int) or per_octave < 1:
            raise _refused(f"{place}.scales_per_octave", per_octave, "a positive number")
        scales = tuple(base * 2 ** (i / per_octave) for i in range(per_octave))
    offset = _number(found.get("center_offset", 0.0), f"{place}.center_offset")
    if not 0 <= offset < 1:
        raise _refused(f"{place}.center_offset", offset, "at least 0 and less than 1")
    if detector != "retinanet" and len(scales) * len(ratios) != 1:
        raise _refused(place, f"{len(scales)} scales and {len(ratios)} ratios", "one of each")
    return Anchors(scales, ratios, offset)


def _stds(config: Mapping[str, Any]) -> tuple[float, ...] | None:
    if select(config, "model.bbox_head") is None:
        return None
    path = "model.bbox_head.bbox_coder.target_stds"
    if (found := select(config, path)) is None:
        return (1.0, 1.0, 1.0, 1.0)  # OpenMMLab's default
    stds = _numbers(found, path, 4)
    if min(stds) <= 0:
        raise _refused(path, found, "positive numbers")
    return stds


def _p6_from(config: Mapping[str, Any]) -> str | None:
    path = "model.neck.add_extra_convs"
    found = select(config, path)
    if found is True:
        return "c5" if _literal(config, "model.neck.extra_convs_on_inputs", bool, True) else "p5"
    if found in (None, "on_input", "on_output"):
        return {None: None, "on_input": "c5", "on_output": "p5"}[found]
    raise _refused(path, found, "'on_input', 'on_output' or True")
