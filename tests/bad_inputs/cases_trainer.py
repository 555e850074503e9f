"""Averaged weights, further writers, and images to predict."""

from __future__ import annotations

from pathlib import Path

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.cases_command import case
from tests.bad_inputs.runs import train
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES"]

PREDICT = "predict --config-file mine.py --weights teacher.pth"


def empty(folder: Path) -> None:
    """A folder without images beside the run's files."""
    write_run(folder)
    (folder / "none").mkdir()


def no_detector(folder: Path) -> None:
    """A config of another model."""
    write_run(folder, "\nimport torch\nfrom detectron2.config import LazyCall as L\nmodel = L(torch.nn.Identity)()\n")


CASES = [
    BadInput(
        "Config",
        "`train.ema` whose decay is 1",
        train("train.ema={decay: 1.0}"),
        "d2kd train: train.ema is {'decay': 1.0}, expected None, or a mapping with a decay > 0 and < 1 alone: "
        "dict(decay=0.999).",
    ),
    BadInput(
        "Config",
        "`train.best_metric` of averaged weights without `train.ema`",
        train("train.best_metric=ema/bbox/AP"),
        "d2kd train: train.best_metric is 'ema/bbox/AP', a metric of averaged weights, but train.ema is null: set "
        "train.ema={decay: 0.999}.",
    ),
    case(
        "`d2kd predict` without weights",
        "predict --config-file mine.py images",
        "d2kd predict: the following arguments are required: --weights (d2kd predict --help).",
    ),
    case(
        "`d2kd predict` of an image that is not there",
        f"{PREDICT} images/7.png",
        "d2kd predict: There is no image or folder 'images/7.png'.",
    ),
    case(
        "`d2kd predict` of a file that is no image",
        f"{PREDICT} images/0.png birds.json",
        "d2kd predict: birds.json is no image that Pillow reads.",
    ),
    case(
        "`d2kd predict` of a folder without images",
        f"{PREDICT} none",
        "d2kd predict: The folder none has no images (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff).",
        empty,
    ),
    case(
        "`d2kd predict` with weights that are not there",
        "predict --config-file mine.py --weights no.pth images",
        "d2kd predict: The weights are 'no.pth', but there is no such file.",
    ),
    case(
        "`d2kd predict` with a config without a detector",
        f"{PREDICT} images",
        "d2kd predict: The config's model is of Identity, expected a one-stage detector (a DenseDetector such as "
        "RetinaNet), plain or in d2kd.distill().",
        no_detector,
    ),
    case(
        "`d2kd predict` with a score of 30",
        f"{PREDICT} images --score-threshold 30",
        "d2kd predict: --score-threshold is 30.0, expected a number from 0 to 1 (d2kd predict --help).",
    ),
]
