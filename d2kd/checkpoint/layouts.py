"""What a file is that is no checkpoint of the detector, by its first bytes, its entries or its keys."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2kd.checkpoint.whole import DamagedError

__all__ = [
    "LayoutError",
    "check_finite",
    "check_start",
    "check_weights",
    "first_of",
    "named_by_objects",
    "other_layout",
]

_SAVE = "save the detector's weights alone, torch.save({'model': detector.state_dict()}, FILE)"


class LayoutError(ValueError):
    """A file that is no checkpoint as Detectron2 keeps them, or runs code; its message says what it is."""


# By its first bytes


def check_start(path: str) -> None:
    """
    Raises:
        DamagedError: the file is empty, a web page or a Git LFS pointer.
        LayoutError: it is of another format than torch.save's or pickle's.
    """
    with open(path, "rb") as file:
        start = file.read(256)
    text = start.lstrip().lower()
    if path.endswith((".py", ".yaml", ".yml")):
        raise LayoutError(f"{path} is a config by its name, expected a checkpoint, such as a .pth.")
    if not start:
        raise DamagedError(f"{path} is empty.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DamagedError(f"{path} is a web page (HTML): its address did not answer with the file.")
    if start.startswith(b"version https://git-lfs"):
        raise DamagedError(f"{path} is a Git LFS pointer, not the file that it stands for: run git lfs pull.")
    if what := _format(path, start):
        raise LayoutError(f"{path} is {what}: {_SAVE}.")


def _format(path: str, start: bytes) -> str | None:
    if start.startswith(b"\x93NUMPY"):
        return "a numpy array (npy)"
    if start.startswith(b"\x1f\x8b"):
        return "a compressed file (gzip)"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < Path(path).stat().st_size:
        return "a safetensors file"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return "an archive of numpy arrays (npz)"
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript model"
    return None


# By what it holds


def named_by_objects(path: str, names: Sequence[str]) -> str:
    """
    The sentence about a file that torch.load does not read because it holds more than weights.

    Args:
        path: the file.
        names: the classes and functions that it names.
    """
    roots = {name.partition(".")[0] for name in names}
    modules = [name for name in names if name.startswith("torch.nn.modules.")]
    if roots & {"mmengine", "mmcv", "mmdet"}:
        what = f"is an OpenMMLab checkpoint: {_convert(path, ())} --trust-pickle converts it, if you trust it"
    elif roots & {"lightning", "lightning_fabric", "pytorch_lightning"}:
        what = f"is a Lightning checkpoint with objects of {first_of(names, 3)}: {_SAVE}"
    elif modules:
        what = f"is a whole module ({first_of(modules, 3)}), which would run code when it is read: {_SAVE}"
    else:
        what = f"holds {first_of(names, 3)} beside weights, which is read only by running what the file says: {_SAVE}"
    return f"{path} {what}."


def check_weights(weights: object, path: str) -> None:
    """
    Args:
        weights: what the file has under "model", or all of it if it has no such entry.
        path: the file.

    Raises:
        LayoutError: it is no mapping of names to arrays, or has quantised ones.
    """
    if not isinstance(weights, Mapping):
        raise LayoutError(f"{path} holds a {type(weights).__name__}, expected weights: {_SAVE}.")
    if not _is_state(weights):
        raise LayoutError(f"{path} {_entries(weights, path)}.")
    quantised = [key for key, value in weights.items() if _is_quantised(value)]
    if quantised:
        raise LayoutError(
            f"{path} has weights of integers (int8), {len(quantised)}, such as {quantised[0]}, expected floating "
            "point: give the checkpoint from before it was quantised."
        )


def _entries(content: Mapping[Any, Any], path: str) -> str:
    states = {name: value for name, value in content.items() if isinstance(value, Mapping) and _is_state(value)}
    name = "state_dict" if "state_dict" in states else next(iter(states), None)
    if "pytorch-lightning_version" in content:
        return f"is a Lightning checkpoint, with its weights under 'state_dict': {_SAVE}"
    if name is not None and _is_openmmlab(states[name]):
        return f"is an OpenMMLab checkpoint: convert it, {_convert(path, states[name])}"
    if name is not None:
        return f"has weights under {name!r}, expected them under 'model': {_SAVE}"
    if "param_groups" in content or "optimizer" in content:
        return "has an optimizer's state and no weights: give the checkpoint that was saved with it"
    strange = [str(key) for key, value in content.items() if not isinstance(value, (np.ndarray, torch.Tensor))]
    return f"has no weights: its entries {first_of(strange, 3) or '(none)'} are no arrays"


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, (np.ndarray, torch.Tensor)) for key, value in content.items()
    )


def _is_quantised(value: np.ndarray | torch.Tensor) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 1 and value.dtype in (np.int8, np.uint8)
    return value.is_quantized or (value.dim() > 1 and value.dtype in (torch.int8, torch.uint8))


def check_finite(model: nn.Module, path: str) -> None:
    """
    Check the weights of a detector that was loaded.

    Raises:
        LayoutError: some are NaN or infinite.
    """
    bad = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    for name, value in model.named_buffers():
        statistics = ".running_" in name  # another buffer may be infinite, such as a mask
        wrong = ~torch.isfinite(value) if statistics else torch.isnan(value)
        if wrong.any() and not name.startswith("distillation."):
            bad.append(name)
    if bad:
        raise LayoutError(
            f"{path} has weights that are not finite, {len(bad)}: {first_of(bad, 3)}; give another checkpoint."
        )


# By its keys


def other_layout(
    path: str, model: nn.Module, missing: Iterable[str], unexpected: Iterable[str], mismatched: Sequence[str]
) -> str | None:
    """
    What a checkpoint is that does not fit the model.

    Args:
        path: the file, for the converter's command.
        model: the detector.
        missing: its keys that the checkpoint lacks.
        unexpected: keys of the checkpoint that it lacks, those of distillation too.
        mismatched: keys of both with their two shapes, for the message.

    Returns:
        the end of a sentence that begins with "... is"; None: it is nothing that is known.
    """
    wanted, missing, unexpected = list(model.state_dict()), set(missing), list(unexpected)
    if _is_openmmlab(unexpected):
        return f"an OpenMMLab checkpoint: convert it, {_convert(path, unexpected)}"
    if any(key.startswith(("roi_heads.", "proposal_generator.")) for key in unexpected):
        return "a checkpoint of a two-stage detector (R-CNN), expected one of a dense detector"
    if {"conv1.weight", "layer1.0.conv1.weight"} <= set(unexpected):
        return "a ResNet in torchvision's names, a backbone alone: give a checkpoint of the whole detector"
    if prefix := _common_prefix(unexpected, wanted):
        return f"a checkpoint of a module that holds the detector, its keys begin with {prefix!r}: {_SAVE}"
    head = [key for key in wanted if key.startswith("head.")]
    backbone = any(key.startswith("backbone.") and key.endswith(".weight") for key in wanted if key not in missing)
    bare = any(f"backbone.bottom_up.{key}" in missing for key in unexpected)
    if head and missing.issuperset(head) and (backbone or bare):
        return f"a backbone alone, without the {len(head)} tensors of a head: give a checkpoint of the whole detector"
    student = any(key.startswith("distillation.") for key in unexpected)
    whose = "of a distilled run or its baseline, so of a student," if student else "of a detector"
    if mismatched and not missing and all(key.startswith("head.cls_score.") for key in mismatched):
        return (
            f"a checkpoint {whose} with another number of classes: {first_of(mismatched)}; set num_classes, or give "
            "the checkpoint that was trained with this config"
        )
    enough = 12 if student else 3
    if 2 * len(missing) < len(wanted) and enough * len(mismatched) > len(wanted) - len(missing):
        return (
            f"a checkpoint {whose} in another size, {len(mismatched)} tensors differ: {first_of(mismatched, 3)}; give "
            "the checkpoint that was trained with this config"
        )
    return None


def _common_prefix(keys: Sequence[str], wanted: Sequence[str]) -> str | None:
    """What stands before each of the model's keys, if all are there."""
    last = wanted[-1]
    given = set(keys)
    for key in keys:
        prefix = key.removesuffix(last)
        if prefix != key and prefix and all(prefix + name in given for name in wanted):
            return prefix
    return None


_OPENMMLAB_HEADS = {"gfl_cls": "gfl", "atss_cls": "atss", "retina_cls": "retinanet", "conv_cls": "fcos"}


def _is_openmmlab(keys: Iterable[str]) -> bool:
    return any(key.startswith(("bbox_head.", "neck.fpn_convs.", "rpn_head.", "roi_head.")) for key in keys)


def _convert(path: str, keys: Iterable[str]) -> str:
    """The converter's command, with what the keys tell of its options."""
    keys = set(keys)
    heads = [name for key, name in _OPENMMLAB_HEADS.items() if f"bbox_head.{key}.weight" in keys]
    blocks = sum(f"backbone.layer3.{block}.conv1.weight" in keys for block in range(23))
    small = {2: 18, 6: 34}.get(blocks, "N")
    depth = {6: 50, 23: 101}.get(blocks, "N") if "backbone.layer3.0.conv3.weight" in keys else small
    detector = heads[0] if heads else "NAME"
    return f"d2kd convert {path} converted.pth --detector {detector} --depth {depth}"


def first_of(names: Sequence[str], count: int = 5) -> str:
    """The first ``count`` names, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
