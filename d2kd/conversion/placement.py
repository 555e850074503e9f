"""The conversion: every tensor of the model is filled, every tensor of the file is placed or dropped with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from d2kd.conversion.architecture import Architecture, read_architecture
from d2kd.conversion.errors import ConversionError
from d2kd.conversion.families import FAMILIES, STYLES
from d2kd.conversion.names import OpenMMLabNames, reorder_anchors
from d2kd.conversion.stated import Stated
from d2kd.conversion.target import Target, find_target

__all__ = ["Conversion", "convert"]

_COUNTER = ".num_batches_tracked"


@dataclass
class Conversion:
    """
    What became of a checkpoint.

    Attributes:
        detector: a key of :data:`FAMILIES`.
        architecture: what the file tells.
        target: the model node that ``model`` loads into without missing or unexpected keys.
        model: its state dict.
        placed: key of ``model`` -> key of the file.
        dropped: key of the file -> why it is not in ``model``.
        filled: key of ``model`` that the file lacks -> with what and why.
    """

    detector: str
    architecture: Architecture
    target: Target
    model: dict[str, Tensor] = field(repr=False)
    placed: dict[str, str] = field(repr=False)
    dropped: dict[str, str] = field(repr=False)
    filled: dict[str, str] = field(repr=False)


def convert(
    state: Mapping[str, Tensor],
    detector: str,
    *,
    depth: int,
    stated: Stated | None = None,
    style: str | None = None,
    p6_from: str | None = None,
    centerness_on_reg: bool = False,
    norm_on_bbox: bool = False,
    ema: bool = False,
) -> Conversion:
    """
    Args:
        state: weights of an OpenMMLab checkpoint, see :func:`read_checkpoint`.
        detector: a key of :data:`FAMILIES`.
        depth: of its ResNet, 18, 34, 50 or 101.
        stated: what the file says of itself, see :func:`read_stated`; the rest is as in the published files.
        style: a key of :data:`STYLES`; None: what is stated, or that of the family's published files.
        p6_from: "c5" or "p5"; None leaves it to what is stated and to the weights.
        centerness_on_reg: (FCOS) its config has ``centerness_on_reg``.
        norm_on_bbox: (FCOS) its config has ``norm_on_bbox``.
        ema: take the averaged copies ``ema_*``.

    Raises:
        ConversionError: the weights do not fit these options, or these do not fit what is stated, or a key is unknown;
            the message lists the keys.
    """
    if detector not in FAMILIES:
        raise ConversionError(f"--detector is {detector!r}, expected one of {', '.join(FAMILIES)}.")
    if style is not None and style not in STYLES:
        raise ConversionError(f"--style is {style!r}, expected one of {', '.join(STYLES)}.")
    if detector != "fcos" and (centerness_on_reg or norm_on_bbox):
        name = "--centerness-on-reg" if centerness_on_reg else "--norm-on-bbox"
        raise ConversionError(f"{name} is an option of FCOS, but --detector is {detector}: remove it.")
    stated = _completed(
        stated or Stated(),
        style=style,
        p6_from=p6_from,
        centerness_on_reg=centerness_on_reg or None,
        norm_on_bbox=norm_on_bbox or None,
    )
    state, names, aside = _without_averages(state, ema)
    _rename_version_1(state, names)
    anchors = (len(stated.anchors.ratios), len(stated.anchors.scales)) if stated.anchors else None
    architecture = read_architecture(state, detector, depth=depth, p6_from=stated.p6_from, anchors=anchors)
    target = find_target(architecture, detector, stated)
    conversion = Conversion(detector, architecture, target, model={}, placed={}, dropped={}, filled={})
    problems = _place(state, conversion)
    _drop(state, conversion)
    unknown = [key for key in state if key not in conversion.dropped and key not in conversion.placed.values()]
    problems["not known, so neither placed nor dropped"] = unknown
    if any(problems.values()):
        raise ConversionError(_explained(problems, conversion))
    conversion.placed = {key: names.get(file_key, file_key) for key, file_key in conversion.placed.items()}
    conversion.dropped = {names.get(key, key): why for key, why in conversion.dropped.items()} | aside
    return conversion


def _completed(stated: Stated, **options: Any) -> Stated:
    """What is stated, with what the options say where it is not."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if (said := getattr(stated, name)) not in (None, value):
            option = name.replace("_", "-")
            raise ConversionError(f"--{option} is {value!r}, but the file's config says {said!r}: remove --{option}.")
    return replace(stated, **given)


def _rename_version_1(state: dict[str, Tensor], names: dict[str, str]) -> None:
    """FCOS's predictors as later versions name them; ``names`` keeps how the file does."""
    for key in [key for key in state if key.startswith("bbox_head.fcos_")]:
        later = key.replace("bbox_head.fcos_", "bbox_head.conv_")
        state[later] = state.pop(key)
        names[later] = names.pop(key, key)


def _without_averages(
    state: Mapping[str, Tensor], ema: bool
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """(weights by plain name, plain name -> key where that differs, key -> why it is left out)."""
    averages = [key for key in state if key.startswith("ema_")]
    plain = [key for key in state if not key.startswith("ema_")]
    if not ema:
        aside = dict.fromkeys(averages, "averaged copy; --ema takes it in place of the plain weights")
        return {key: state[key] for key in plain}, {}, aside
    names, missing = {}, []
    for key in plain:
        # As a module's buffer, which has no dots in its name, or as the key itself.
        copy = next((name for name in (f"ema_{key.replace('.', '_')}", f"ema_{key}") if name in state), None)
        if copy is not None:
            names[key] = copy
        elif not key.endswith(_COUNTER):
            missing.append(key)
    if missing:
        raise ConversionError(
            "--ema takes the averaged copies ema_* of the weights, but the file's state_dict has none of "
            f"{', '.join(missing)}: remove --ema."
        )
    taken = {key: state[names.get(key, key)] for key in plain}
    taken |= {key: state[key] for key in averages if key not in names.values()}  # copies of nothing: not known
    return taken, names, dict.fromkeys(names, "replaced by its averaged copy (--ema)")


def _place(state: Mapping[str, Tensor], conversion: Conversion) -> dict[str, list[str]]:
    """Fill the model; return what the file lacks and what has another shape there."""
    family = FAMILIES[conversion.detector]
    name_in_file = OpenMMLabNames(family, tower_norm=conversion.architecture.tower_norm)
    missing, mismatched = [], []
    for key, wanted in conversion.target.state_dict().items():
        file_key = name_in_file(key)
        if file_key not in state:
            if key.endswith(_COUNTER):
                conversion.filled[key] = "0, as the file has no counter of training batches"
                conversion.model[key] = torch.zeros_like(wanted, device="cpu")
            else:
                missing.append(f"{file_key} ({tuple(wanted.shape)})")
            continue
        conversion.placed[key] = file_key
        value = state[file_key]
        if value.shape != wanted.shape:
            mismatched.append(f"{file_key} (file {tuple(value.shape)}, expected {tuple(wanted.shape)})")
            continue
        if key.startswith(("head.cls_score.", "head.bbox_pred.")):
            ratios, scales = conversion.architecture.anchors
            value = reorder_anchors(value, ratios=ratios, scales=scales)
        # A contiguous copy: torch.save writes the whole storage of a view.
        conversion.model[key] = value.to(wanted.dtype, copy=True, memory_format=torch.contiguous_format)
    return {"missing": missing, "of another shape": mismatched}


def _drop(state: Mapping[str, Tensor], conversion: Conversion) -> None:
    """Record the tensors that are left out, with the reason."""
    placed = set(conversion.placed.values())
    for key, value in state.items():
        if key in placed:
            continue
        if key.endswith(_COUNTER) and f"{key.removesuffix(_COUNTER)}.running_var" in placed:
            conversion.dropped[key] = "counter of training batches, which a frozen norm does not have"
        elif key == "bbox_head.integral.project":
            bins = torch.arange(len(value) if value.dim() else 0)
            reg_max = conversion.architecture.reg_max
            if reg_max != len(bins) - 1 or not torch.equal(value.float().cpu(), bins.float()):
                raise ConversionError(
                    f"{key} is {value.tolist()}, expected the whole numbers from 0 to {reg_max}: "
                    "distributions over other distances are not converted."
                )
            conversion.dropped[key] = f"constant: the distances 0 to {reg_max}"


def _explained(problems: Mapping[str, list[str]], conversion: Conversion) -> str:
    lines = [f"  {kind}, {len(keys)}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
    title, depth = FAMILIES[conversion.detector].title, conversion.architecture.depth
    return f"The file does not fit {title} with ResNet-{depth}; nothing was converted. Keys\n" + "\n".join(lines)
