"""
See what distillation does with single images. A sheet each: the labels, and what the teacher, the student alone and
the distilled student detect; then, on each pyramid level, where the regions of the losses lie, where student and
teacher differ, and the gradient that distillation sends to the student's features.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from d2kd.checkpoint import load_strictly
from d2kd.cli import Parser, check_folder, run_command, without_overrides
from d2kd.config import CONFIG, load_config
from d2kd.engine import ConfigError, resolve_device
from d2kd.engine.sheet import class_names, file_names, look_at_step, make_sheet, save_sheets, test_images
from d2kd.experiments import load_student
from d2kd.modeling import DistilledDetector, student
from d2kd.modeling.detectors.interface import num_classes_of

COMMAND = "d2kd visualize"
_FIRST = 3
EXAMPLES = """
An image is a file, or the number of an image of dataloader.test, from 0. A file that is not of dataloader.test has no
labels, which most regions need.

examples:
  d2kd visualize --config-file distilled.py --weights output/distilled/model_final.pth
  d2kd visualize --config-file distilled.py --weights output/distilled/model_final.pth \\
      --alone output/alone/model_final.pth --images 3 17 street.jpg
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a LazyConfig file, or the name of a packaged config")
    add("--weights", required=True, metavar="FILE", help="of the distilled student")
    add("--alone", metavar="FILE", help="weights of the same student, trained alone, to be seen beside it")
    add("--images", nargs="+", metavar="IMAGE", help=f"default: the first {_FIRST} of dataloader.test with objects")
    add("--method", default=CONFIG, help="replace model.losses, as of d2kd train")
    add("--output", type=Path, metavar="FOLDER", help="default: train.output_dir/visualize")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config; +KEY=VALUE for a new key")
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: nothing is distilled, or there is no such image.
        ValueError, OSError: weights, a teacher or an image that cannot be used.
    """
    # Of files, which have no labels.
    logging.getLogger("detectron2.d2kd.modeling.distillation.monitors").setLevel(logging.ERROR)
    asked, overrides = without_overrides(args.images or ())
    cfg = load_config(args.config_file, [*args.overrides, *overrides], method=args.method)
    output = args.output or Path(cfg.train.output_dir, "visualize")
    check_folder("--output", output)
    model = load_student(cfg, args.weights)
    if not isinstance(model, DistilledDetector) or model.teacher is None:
        raise ConfigError(
            f"{args.config_file} has no teacher and losses to look at: take a distilled config (d2kd.distill), or add "
            "--method NAME."
        )
    model.load_teacher()
    model.to(resolve_device(cfg.train.device))
    alone = None
    if args.alone:
        alone = deepcopy(student(model)).eval()
        load_strictly(
            alone,
            args.alone,
            refusal=f"{args.alone} (--alone) is no checkpoint of the student",
            absent=f"There is no checkpoint {args.alone} (--alone).",
        )
    images = test_images(cfg, asked or _FIRST)
    if not images:
        raise ConfigError("No image of dataloader.test has objects: name some with --images.")
    names = class_names(cfg, num_classes_of(model.student))
    for (name, item), file in zip(images, file_names([name for name, _ in images])):
        view = look_at_step(model, item, cfg.train.max_iter)
        title = f"image {name} ({args.config_file})"
        sheet = make_sheet(model, item, view, names=names, title=title, alone=alone)
        path = output / file
        save_sheets(path, [sheet])
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_intermixed_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
