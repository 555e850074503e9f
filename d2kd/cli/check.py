"""
See, in about a minute, whether a distilled run is worth starting: what teacher and student know of real training
batches, what each distillation term pulls, and what a step and the run will cost. No weights are kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from d2kd.cli import Parser, check_device, check_file, check_replay, run_command
from d2kd.cli.check_measure import look_at_terms, measure_cost
from d2kd.cli.check_report import Report, to_text
from d2kd.config import CONFIG, load_config
from d2kd.config.nodes import made
from d2kd.data.samples import derive_seed
from d2kd.engine import ConfigError, check_config, check_image_format, make_loader, resolve_device
from d2kd.engine.sheet import class_names, look_at_step, make_sheet, save_sheets
from d2kd.experiments import versions, write_json
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors.interface import num_classes_of
from d2kd.modeling.distillation.examination import examine, judge
from d2kd.modeling.distillation.preflight import BATCHES, IMAGES, pick_images

COMMAND = "d2kd check"
_DRAWN = 2
EXAMPLES = """
The exit status is 0, or 2 where no run should be spent: the last five lines say why. A picture (labels, detections,
where the terms act) is written to train.output_dir. The terms are those after the run's first steps, whose weights are
not kept. Everything is one process: for N GPUs give it what one of them gets,
dataloader.train.total_batch_size=BATCH/N.

examples:
  d2kd check --config-file digits/gfl_crosskd.py
  d2kd check --config-file mine.py --json check.json train.init_checkpoint=student.pth
  d2kd check --config-file mine.py --replay output/non_finite_iter7_rank0.pth
  d2kd check --device
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--config-file", metavar="FILE", help="a LazyConfig file, or the name of a packaged config")
    parser.add_argument("--method", default=CONFIG, help="replace model.losses, as of d2kd train")
    parser.add_argument("--batches", type=int, default=BATCHES, metavar="N", help="training batches (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="(train.output_dir/check.png)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config; +KEY=VALUE for a new key"
    )
    check_replay.add_arguments(parser)
    check_device.add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """
    Returns:
        the exit status: 2 where the teacher's examination says that no run should be spent.

    Raises:
        ValueError, TypeError, FileNotFoundError: what keeps the run from starting.
    """
    if args.batches < 1:
        raise ConfigError(f"--batches is {args.batches}, expected at least 1.")
    check_file("--json", args.json)
    check_file("--picture", args.picture)
    cfg = load_config(args.config_file, args.overrides, method=args.method)
    check_config(cfg)
    device = resolve_device(cfg.train.device)
    setup_logger(name="detectron2").setLevel(logging.WARNING)
    for name in ("detectron2.engine.train_loop", "detectron2.d2kd.modeling.distillation.health"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say of a run is in the report
    seed_all_rng(cfg.train.seed)  # as a run does: Detectron2's train loader draws its order from numpy's generator
    torch.manual_seed(derive_seed(cfg.train.seed, 0))
    model = _build_model(cfg, args.config_file)
    teacher = model.teacher
    if teacher is None:
        raise ConfigError(
            f"{args.config_file} has no teacher and losses to check: take a distilled config (d2kd.distill), or add "
            "--method NAME."
        )
    loader = make_loader(cfg, "train")
    print(f"Reading {args.batches} batches of {args.config_file} on {device} ...", file=sys.stderr)
    start = time.perf_counter()
    batches = list(islice(loader, args.batches))
    # Workers load while the training process trains.
    data_seconds = 0.0 if getattr(loader, "num_workers", 0) else (time.perf_counter() - start) / len(batches)
    names = class_names(cfg, num_classes_of(model.student))
    images: list[Mapping[str, Any]] = []
    for index, batch in enumerate(batches):
        images += pick_images(batch, IMAGES - len(images), len(batches) - index)
    examination = examine(model.student, teacher, model.overlap, images, input_format=model.input_format)
    verdict = judge(
        examination,
        has_class_map=teacher.class_map is not None,
        initial_norms=teacher.initial_norms,
        names=names,
    )
    teacher.preflight = False  # the steps below are no run's
    picture = args.picture or Path(cfg.train.output_dir, "check.png")
    _draw(picture, model, images[:_DRAWN], names, cfg.train.max_iter)
    cost = measure_cost(model, batches, cfg, data_seconds)
    terms = look_at_terms(model, batches, cfg)
    report = Report(args.config_file, model, examination, verdict, terms, cost, names)
    print(to_text(report))
    print(f"The picture: {picture}")
    if args.json:
        write_json(args.json, {**report.figures(), "versions": versions()})
    return 2 if verdict.stop else 0


def _draw(
    path: Path,
    model: DistilledDetector,
    items: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None,
    iteration: int,
) -> None:
    sheets = []
    for number, item in enumerate(items):
        title = f"training image {number}, before the first step"
        view = look_at_step(model, item, iteration)
        sheets.append(make_sheet(model, item, view, names=names, title=title))
    save_sheets(path, sheets)


def _build_model(cfg: DictConfig, file: str) -> DistilledDetector:
    model = made(cfg.model, "model")
    check_image_format(cfg, model)
    if not isinstance(model, DistilledDetector):
        raise ConfigError(f"model of {file} is a {type(model).__name__}, expected what d2kd.distill() returns.")
    model.load_teacher()
    model.to(resolve_device(cfg.train.device)).train()
    if cfg.train.init_checkpoint:
        DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_intermixed_args(argv)
    if args.device:
        return run_command(COMMAND, check_device.run, args)
    if not args.config_file:
        parser.error("--config-file FILE is required, or --device")
    return run_command(COMMAND, check_replay.run if args.replay else run, args)


if __name__ == "__main__":
    raise SystemExit(main())
