"""
Get the student out of a distilled run: its weights alone, as a checkpoint of the plain detector, and, with
--torchscript, a traced model that is shown to give the same detections. Reads the run's config and checkpoint; the
teacher and the data may be gone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data.detection_utils import read_image
from PIL import UnidentifiedImageError

from d2kd.cli import Parser, run_command
from d2kd.config import load_config
from d2kd.export import (
    OUTPUTS,
    ExportError,
    LoadedStudent,
    Proof,
    load_student,
    write_torchscript,
    write_weights,
)

COMMAND = "d2kd export"
EXAMPLES = """
examples:
  d2kd export FILE.py MODEL.pth --output student.pth
  d2kd export FILE.py MODEL.pth --output student.pth --torchscript student.ts --image street.jpg
  d2kd export FILE.py MODEL.pth --output x.pth --torchscript x.ts model.student.test_score_thresh=0.3

The traced model takes one (C, H, W) image of 0 to 255, in the channel order that is printed and in the size that the
run's test mapper makes: it normalises and pads, but does not resize. Thresholds are those of the config, overrides
included. It was traced, and compared, on the CPU.
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="LazyConfig file of the run, or the name of a packaged one")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="any of the run's checkpoints")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.pth", help="the student's weights")
    parser.add_argument("--torchscript", type=Path, metavar="FILE.ts", help="also trace the student to this file")
    parser.add_argument(
        "--image", metavar="PATH", help="compare the traced model with the student on it (default: a random image)"
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="export weights that do not fit the student, the rest being random"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config; +KEY=VALUE for a new key"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser()
    args = parser.parse_intermixed_args(argv)  # overrides may come last
    for override in args.overrides:
        if "=" not in override:
            parser.error(f"{override!r} is no key=value override")
    if args.image and not args.torchscript:
        parser.error("--image is what --torchscript compares on: add --torchscript FILE.ts")
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """
    Check what can be known about the outputs before anything is read.

    Raises:
        ExportError: one is an input, the other output, a folder, or exists without ``--overwrite``; or ``--output`` is
            no .pth, which Detectron2 goes by.
    """
    outputs = {"--output": args.output, **({"--torchscript": args.torchscript} if args.torchscript else {})}
    inputs = [path for path in (args.config, args.checkpoint.split("?")[0], args.image) if path]
    if args.output.suffix != ".pth":
        raise ExportError(f"--output is {args.output}, expected a name that ends in .pth: Detectron2 goes by it.")
    if args.torchscript and args.torchscript.resolve() == args.output.resolve():
        raise ExportError(f"--output and --torchscript are both {args.output}: give them different names.")
    for option, path in outputs.items():
        if path.is_dir():
            raise ExportError(f"{option} {path} is a folder, expected the name of a file.")
        for source in inputs:
            if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
                raise ExportError(f"{option} {path} is what is read: give it another name.")
        if path.exists() and not args.overwrite:
            raise ExportError(f"{option} {path} exists: add --overwrite to replace it.")


def describe_weights(student: LoadedStudent, path: Path) -> str:
    state = student.detector.state_dict()
    parameters = sum(p.numel() for p in student.detector.parameters())
    lines = [
        f"Wrote {path}: {type(student.detector).__name__}, {len(state)} tensors, {parameters} parameters, "
        f"{path.stat().st_size} bytes"
    ]
    if student.misfit:
        lines.append(f"  WARNING: the checkpoint does not fit the student (--allow-partial): {student.misfit}")
    if student.distillation:
        lines.append(f"  left out of the model, {len(student.distillation)}: {', '.join(student.distillation)}")
    if student.entries:
        lines.append(f"  left out beside the model: {', '.join(student.entries)}")
    return "\n".join(lines)


def describe_torchscript(student: LoadedStudent, path: Path, proof: Proof) -> str:
    height, width = proof.image.size
    if proof.any_size:
        sizes = f"  compared {proof.other_size}"
    else:
        why = proof.other_size or "it fails on another size"
        sizes = f"  WARNING: only for images of {height}x{width} pixels; {why}"
    return (
        f"Wrote {path}: traced, {path.stat().st_size} bytes\n"
        f"  compared {proof.image}\n"
        f"{sizes}\n"
        f"  takes a ({len(student.detector.get_buffer('pixel_mean'))}, H, W) image, {student.input_format}, 0 to 255; "
        f"returns {', '.join(OUTPUTS)}"
    )


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError: a checkpoint or an option that cannot be exported; nothing was written.
        OSError: an input that cannot be read.
    """
    check_outputs(args)
    cfg = load_config(args.config, args.overrides)
    student = load_student(cfg, args.checkpoint, allow_partial=args.allow_partial)
    said = []
    if args.torchscript:
        # First: a student whose traced model differs leaves no file at all.
        image = None
        if args.image:
            try:
                pixels = read_image(args.image, format=student.input_format)
            except UnidentifiedImageError as error:
                raise ExportError(f"--image {args.image} is no image that Pillow reads.") from error
            image = torch.as_tensor(pixels.transpose(2, 0, 1).astype("float32"))
        proof = write_torchscript(student.detector, args.torchscript, image)
        said.append(describe_torchscript(student, args.torchscript, proof))
    write_weights(student.detector, args.output)
    print("\n".join([describe_weights(student, args.output), *said]))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
