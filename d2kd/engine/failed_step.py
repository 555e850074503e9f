"""A step that was not finite, as a file: its batch and the weights that it began with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from d2kd.checkpoint import check_whole, save_whole

__all__ = ["FailedStep", "load_failed_step", "save_failed_step"]

#: Of an image, beside its pixels and its objects.
_FIELDS = ("file_name", "image_id", "height", "width", "unlabeled")


@dataclass(frozen=True)
class FailedStep:
    """
    Attributes:
        batch: what the model was given: images, and objects where they have labels.
        weights: the model's state before the step; statistics of batch norm are those after it.
        iteration, rank: of the run.
        error: what it said then.
    """

    batch: list[dict[str, Any]]
    weights: dict[str, Tensor]
    iteration: int
    rank: int
    error: str


def save_failed_step(
    output_dir: str, model: nn.Module, batch: Sequence[Mapping[str, Any]], iteration: int, error: str
) -> str:
    """
    Write ``<output_dir>/non_finite_iter<N>_rank<R>.pth``, of tensors, numbers and texts alone; returns its path.

    Args:
        output_dir: a local folder.
        model: not wrapped.
        batch: of this rank.
        iteration: of the run.
        error: what stopped it.
    """
    path = os.path.join(output_dir, f"non_finite_iter{iteration}_rank{comm.get_rank()}.pth")
    content = {
        "batch": [_plain(item) for item in batch],
        "weights": {name: x.cpu() for name, x in model.state_dict().items()},
        "iteration": iteration,
        "rank": comm.get_rank(),
        "error": error,
    }
    save_whole(content, path)
    return path


def load_failed_step(path: str | Path) -> FailedStep:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not written by :func:`save_failed_step`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} to replay.")
    try:
        check_whole(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # pickle's, zipfile's or torch's
        content = None
    if not isinstance(content, dict) or content.keys() != {"batch", "weights", "iteration", "rank", "error"}:
        raise ValueError(f"{path} is no saved step, expected a file non_finite_iterN_rankR.pth of a run's output_dir.")
    return FailedStep(**{**content, "batch": [_item(x) for x in content["batch"]]})


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: item[key] for key in _FIELDS if isinstance(item.get(key), (str, int, float, bool))}
    plain["image"] = item["image"].cpu()
    if "instances" in item:
        objects = item["instances"]
        plain["objects"] = {
            "size": list(objects.image_size),
            "boxes": objects.gt_boxes.tensor.cpu(),
            "classes": objects.gt_classes.cpu(),
        }
    return plain


def _item(plain: Mapping[str, Any]) -> dict[str, Any]:
    item = {key: value for key, value in plain.items() if key != "objects"}
    if "objects" in plain:
        objects = plain["objects"]
        height, width = objects["size"]
        item["instances"] = Instances((height, width), gt_boxes=Boxes(objects["boxes"]), gt_classes=objects["classes"])
    return item
