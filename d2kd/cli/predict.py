"""
Draw what a student detects on images of your own, and write it as json. Works with any checkpoint of a run, distilled
or plain, its averaged weights (model_final_ema.pth) and an exported student; the teacher and the data may be gone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from d2kd.cli import Parser, check_folder, run_command, without_overrides
from d2kd.config import load_config
from d2kd.engine import ConfigError
from d2kd.engine.prediction import (
    PREDICTIONS,
    classes_of,
    find_images,
    load_detector,
    predict_images,
    write_predictions,
)
from d2kd.engine.sheet import LEAST_SCORE

COMMAND = "d2kd predict"
EXAMPLES = """
Images are read as by dataloader.test.mapper of the config. The output folder gets a picture for each image, and
predictions.json: a list like COCO's results, with file_name, category_name, bbox [x, y, width, height] in pixels of the
image, and score.

examples:
  d2kd predict --config-file student.py --weights output/student/model_final.pth street.jpg
  d2kd predict --config-file student.py --weights student.pth photos/ more/*.jpg --output seen --score-threshold 0.5
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a LazyConfig file, or the name of a packaged config")
    add("--weights", required=True, metavar="FILE", help="a checkpoint of the student")
    add("images", nargs="+", metavar="IMAGE", help="files, and folders of images; KEY=VALUE changes the config")
    add("--output", type=Path, metavar="DIR", help="default: train.output_dir/predict")
    add(
        "--score-threshold",
        type=float,
        default=LEAST_SCORE,
        metavar="SCORE",
        help=f"the least score of a detection (default: {LEAST_SCORE})",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: an image or a folder that is none, a config without a detector, or a picture that would replace an
            image.
        ValueError, OSError: weights or an image that cannot be used.
    """
    images, overrides = without_overrides(args.images)
    cfg = load_config(args.config_file, overrides)
    output = args.output or Path(OmegaConf.select(cfg, "train.output_dir", default="."), "predict")
    check_folder("--output", output)
    files = find_images(images)
    if not files:
        raise ConfigError("No image is given, expected files or folders of images.")
    detector = load_detector(cfg, args.weights)
    classes = classes_of(cfg, detector)
    total = 0
    predictions = predict_images(cfg, detector, files, args.score_threshold)
    for file, picture, count in write_predictions(output, predictions, files, classes):
        total += count
        print(f"{file}: {count} {'object' if count == 1 else 'objects'}, {picture}", flush=True)
    if classes.names is None:
        print("The classes have numbers: their names are in the dataset's metadata, which cannot be read here.")
    noun = "image" if len(files) == 1 else "images"
    print(f"{total} objects of {type(detector).__name__} on {len(files)} {noun}: {output / PREDICTIONS}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_intermixed_args(argv)
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold is {args.score_threshold}, expected a number from 0 to 1")
    return run_command(COMMAND, run, args)


if __name__ == "__main__":
    raise SystemExit(main())
