"""What may be wrong with the images and labels of a batch, looked at before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor

from d2kd.modeling.detectors.interface import num_classes_of, pixel_statistics
from d2kd.modeling.distillation.non_finite import label_faults

__all__ = ["check_alone", "check_batch", "check_samples"]


def check_alone(args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """
    Raises:
        TypeError: a model was called in training with more than a batch.
    """
    if args or kwargs:
        found = ", ".join([*([f"{len(args)} more"] if args else []), *kwargs])
        raise TypeError(
            f"DistilledDetector was called in training with further arguments ({found}), expected batched_inputs "
            "alone, since it replaces the student's forward by its four steps: put them into the samples."
        )


def check_samples(batch: object) -> None:
    """
    Raises:
        TypeError: what a loader gives is no list of mappings with an "image" of (C, H, W).
    """
    for sample in batch if isinstance(batch, Sequence) else [batch]:
        image = sample.get("image") if isinstance(sample, Mapping) else None
        if not isinstance(image, Tensor) or image.dim() != 3:
            found = f"a {type(sample).__name__}"
            if isinstance(sample, Mapping):
                shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
                found = f"'image' as a {type(image).__name__}{shape}" if "image" in sample else "no 'image'"
            raise TypeError(
                f"A sample of dataloader.train has {found}, expected a mapping whose 'image' is a tensor (C, H, W): "
                "correct what dataloader.train.mapper returns."
            )


def check_batch(
    detector: DenseDetector,
    batched_inputs: Sequence[Mapping[str, Any]],
    *,
    key: str,
    raise_if: Callable[[Tensor, Callable[[], Exception]], None],
) -> None:
    """
    Args:
        detector: which is trained.
        batched_inputs: each has "image" (C, H, W) and, if it has labels, "instances".
        key: where the detector's arguments are in the config.
        raise_if: of :func:`raised_on_all_ranks`, for labels that lie on a device: no look waits for it.

    Raises:
        ValueError: an image of another number of channels than the detector's, an object of a class that it does not
            have, or a box that is inverted, without area or not finite: most would train on it with finite losses.
    """
    channels, known = len(pixel_statistics(detector)[0]), num_classes_of(detector)
    for item in batched_inputs:
        if (found := item["image"].shape[0]) != channels:
            raise ValueError(
                f"{_file(item)} has {_count(found)}, but {key}.pixel_mean has {channels}: set image_format of "
                "dataloader.train.mapper, or pixel_mean, pixel_std and the backbone's in_channels of the model."
            )
        if (classes := _classes(item)) is None or not len(classes):
            continue
        boxes = item["instances"].gt_boxes.tensor
        sides = boxes[:, 2:] - boxes[:, :2]
        wrong = {
            partial(_unknown_class, item, classes, known, key): ((classes < 0) | (classes >= known)).any(),
            partial(_broken_box, item): ~((sides > 0) & (sides < torch.inf)).all(),
        }
        for make_error, flag in wrong.items():
            if flag.device.type != "cpu":
                raise_if(flag, make_error)
            elif flag:
                raise make_error()


def _classes(item: Mapping[str, Any]) -> Tensor | None:
    """The classes of an image's objects; None: it has no labels, or they are not used."""
    if item.get("unlabeled", False) or "instances" not in item:
        return None
    return item["instances"].gt_classes


def _unknown_class(item: Mapping[str, Any], classes: Tensor, known: int, key: str) -> ValueError:
    wrong = next(x for x in classes.tolist() if not 0 <= x < known)
    return ValueError(
        f"An object of {_file(item)} has class {wrong}, but {key}.num_classes is {known}, so that classes are 0 to "
        f"{known - 1}: correct the annotations, or num_classes."
    )


def _broken_box(item: Mapping[str, Any]) -> ValueError:
    return ValueError(f"{label_faults([item])[0]}: correct it in the annotations or in dataloader.train.mapper.")


def _file(item: Mapping[str, Any]) -> str:
    return str(item.get("file_name", "an image of this batch"))


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"
