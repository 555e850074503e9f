"""
Compare what teacher, student and exported files cost: parameters, multiply-adds, size, milliseconds an image on this
machine's CPU and, with --ap, what they detect on the config's test data.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from d2kd.cli import Parser, check_file, run_command
from d2kd.config import load_config
from d2kd.config.nodes import made
from d2kd.engine import ConfigError, evaluate, make_loader, teacher_predictor
from d2kd.engine.loaders import make_evaluator
from d2kd.experiments import write_json
from d2kd.export import OnnxDetector, load_student, random_image, test_images
from d2kd.export.analysis import count_bytes, count_flops, count_parameters, time_images
from d2kd.modeling import DistilledDetector
from d2kd.modeling.adapters import input_format_of
from d2kd.modeling.detectors.interface import num_classes_of, pixel_statistics
from d2kd.modeling.distillation import student

COMMAND = "d2kd analyze"
#: How many images are timed, and their size where the config's data are not there.
IMAGES = 8
SIZE = (640, 640)
EXAMPLES = """
Times are those of one image at a time, with normalisation, decoding and NMS, without reading and resizing it. Before
they are measured everything is warmed up; then all take turns, image by image, and the median is shown.

examples:
  d2kd analyze digits/gfl_crosskd.py
  d2kd analyze FILE.py --weights MODEL.pth --onnx student.onnx student_int8.onnx --ap --threads 1 --json table.json
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="a LazyConfig file, or the name of a packaged config")
    parser.add_argument("--weights", metavar="FILE", help="the student's: any checkpoint of the run (default: random)")
    parser.add_argument("--onnx", nargs="+", type=Path, default=[], metavar="FILE", help="of d2kd export --to onnx")
    parser.add_argument("--ap", action="store_true", help="also evaluate all of them on dataloader.test")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times each image is run (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of an operator (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config; +KEY=VALUE for a new key"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser()
    args = parser.parse_intermixed_args(argv)
    args.overrides += [str(path) for path in args.onnx if "=" in str(path)]  # which it takes if they follow
    args.onnx = [path for path in args.onnx if "=" not in str(path)]
    for override in args.overrides:
        if "=" not in override:
            parser.error(f"{override!r} is no key=value override")
    for option in ("rounds", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option} is {value}, expected at least 1")
    if args.ap and not args.weights:
        parser.error("--ap needs the student's --weights")
    return args


class _Row:
    """One of what is compared: how it runs an image, how it is evaluated, and what is known of it."""

    def __init__(
        self, name: str, run: Callable[[Tensor], object], model: Callable | None, size: int, **figures: float
    ) -> None:
        self.name, self.run, self.model = name, run, model
        self.figures: dict[str, Any] = {"bytes": size, **figures}


def _detector_row(name: str, detector: DenseDetector, model: Callable | None, image: Tensor) -> _Row:
    return _Row(
        name,
        lambda x: detector([{"image": x}]),
        model,
        count_bytes(detector),
        parameters=count_parameters(detector),
        multiply_adds=count_flops(detector, image),
    )


def _onnx_row(path: Path, threads: int | None, detector: DenseDetector, input_format: str) -> _Row:
    """
    Raises:
        ConfigError: the file is of a detector with other classes, or for images of other channels, than the student.
    """
    model = OnnxDetector(path, threads)
    found = model.notes.get("input_format", input_format), len(json.loads(model.notes.get("classes", "[]")))
    own = input_format, num_classes_of(detector)
    if found not in (own, (input_format, 0)):
        raise ConfigError(
            f"{path} is of a detector of {found[1]} classes for {found[0]} images, but the config's student has "
            f"{own[1]} classes and takes {own[0]} images: analyze it with its own config."
        )
    return _Row(str(path), lambda x: model([{"image": x}]), model, os.path.getsize(path))


def _teacher_rows(cfg: DictConfig, image: Tensor, notes: list[str]) -> list[_Row]:
    """The plain teacher, with its weights if they are there; none if the config has no teacher."""
    if not OmegaConf.select(cfg, "model.teacher.model", default=None) or cfg.model.get("losses") is None:
        return []
    cfg.model.teacher.engine, cfg.model.teacher.precision = "eager", "fp32"
    model = made(cfg.model, "model")
    teacher = model.teacher if isinstance(model, DistilledDetector) else None
    if teacher is None:
        return []
    try:
        model.load_teacher()
        detector, predict = teacher.detector, teacher_predictor(model)
    except OSError as error:
        notes.append(f"the teacher has random weights and no AP: {error}")
        detector, predict = made(cfg.model.teacher.model, "model.teacher.model").eval(), None
    return [_detector_row("teacher", detector, predict, image)]


def _images(cfg: DictConfig, channels: int, notes: list[str]) -> tuple[list[Tensor], str]:
    try:
        images = test_images(cfg, IMAGES)
        return images, f"{len(images)} images of dataloader.test"
    except (ValueError, OSError, ImportError) as error:
        notes.append(f"a random image is timed: {error}")
        return [random_image(channels, SIZE, 0)], "a random image"


def _average_precision(cfg: DictConfig, model: Callable) -> float:
    """Of images one at a time, as they are timed: in a batch, padding to the largest image changes a little."""

    def one_at_a_time(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [output for item in batch for output in model([item])]

    with redirect_stdout(io.StringIO()):  # pycocotools prints
        results = evaluate(one_at_a_time, make_loader(cfg, "test"), make_evaluator(cfg))
    if "AP" not in results.get("bbox", {}):
        raise ConfigError(f"--ap needs a dataloader.evaluator that returns bbox/AP, it returns {sorted(results)}.")
    return results["bbox"]["AP"]


def analyze(args: argparse.Namespace) -> dict[str, Any]:
    """
    Returns:
        {"rows": {name: figures}, "notes": what else the reader must know}; times in seconds.

    Raises:
        ValueError, OSError: weights, files or data that cannot be read.
    """
    cfg = load_config(args.config, args.overrides)
    if args.threads:
        torch.set_num_threads(args.threads)
    notes: list[str] = []
    if args.weights:
        loaded = load_student(cfg, args.weights)
        detector, input_format = loaded.detector, loaded.input_format
    else:
        model = made(cfg.model, "model")
        detector = student(model).cpu().eval()
        input_format = getattr(model, "input_format", None) or input_format_of(detector, None, "model.input_format")
        notes.append("the student has random weights (--weights)")
    images, what = _images(cfg, len(pixel_statistics(detector)[0]), notes)
    rows = [
        *_teacher_rows(cfg, images[0], notes),
        _detector_row("student", detector, detector if args.weights else None, images[0]),
        *(_onnx_row(path, args.threads, detector, input_format) for path in args.onnx),
    ]
    print(f"Measuring {args.config} ...", file=sys.stderr)
    seconds = time_images({row.name: row.run for row in rows}, images, args.rounds)
    for row in rows:
        row.figures["seconds"] = seconds[row.name]
        if args.ap and row.model is not None:
            row.figures["AP"] = _average_precision(cfg, row.model)
    height, width = images[0].shape[1:]
    notes.insert(
        0,
        f"{what}, the first {height}x{width}; time and AP are of images one at a time; ms: median of "
        f"{args.rounds * len(images)} runs, {torch.get_num_threads()} thread(s) of "
        f"{platform.processor() or platform.machine()}; multiply-adds of the first image; MB of weights, or of the "
        "file",
    )
    return {"rows": {row.name: row.figures for row in rows}, "notes": notes}


#: Column -> figure, and its text.
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda x: f"{x / 1e6:.3f} M"),
    "multiply-adds": ("multiply_adds", lambda x: f"{x / 1e9:.3f} G"),
    "size": ("bytes", lambda x: f"{x / 1e6:.2f} MB"),
    "an image": ("seconds", lambda x: f"{x * 1e3:.2f} ms"),
    "AP": ("AP", lambda x: f"{x:.2f}"),
}


def to_text(result: dict[str, Any]) -> str:
    """A markdown table, and the notes."""
    rows = result["rows"]
    columns = [name for name, (key, _) in COLUMNS.items() if any(key in figures for figures in rows.values())]
    lines = [["", *columns]]
    for name, figures in rows.items():
        cells = (COLUMNS[column] for column in columns)
        lines.append([name, *(text(figures[key]) if key in figures else "" for key, text in cells)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    table = [f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths))} |" for line in lines]
    return "\n".join([*table, "", *(f"- {note}" for note in result["notes"])])


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError, ImportError: see :func:`analyze`.
    """
    check_file("--json", args.json)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    result = analyze(args)
    print(to_text(result))
    if args.json:
        write_json(args.json, result)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
