"""
Get the student out of a distilled run: its weights alone, as a checkpoint of the plain detector, or a file that detects
without Detectron2 and d2kd, kept only if it detects what the student does. Reads the run's config and checkpoint; the
teacher may be gone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import d2kd
from d2kd.cli import Parser, run_command
from d2kd.config import load_config
from d2kd.engine.sheet import class_names
from d2kd.export import (
    FORMATS,
    OPSET,
    OPSETS,
    ExportError,
    LoadedStudent,
    Proof,
    images_of_files,
    load_student,
    load_yacs_student,
    random_images,
    test_images,
    train_images,
    write_file,
    write_int8,
    write_weights,
)
from d2kd.modeling.detectors.interface import num_classes_of

COMMAND = "d2kd export"
#: How many images of the config's test data the file is compared on.
IMAGES = 8
EXAMPLES = """
examples:
  d2kd export FILE.py MODEL.pth --output student.pth
  d2kd export FILE.py MODEL.pth --output student.onnx --to onnx
  d2kd export FILE.py MODEL.pth --output student.onnx --to onnx --images street.jpg model.student.test_score_thresh=0.3
  d2kd export FILE.py MODEL.pth --output student_int8.onnx --to onnx --int8 200
  d2kd export config.yaml MODEL.pth --yacs --output student.onnx --to onnx --images street.jpg

torchscript, onnx and exported_program take "images", (N, C, H, W) float32 values of 0 to 255, in the channel order that
is printed, in any number and size: the file normalises and pads, but does not resize. They return, for D places an
image, "boxes" (N, D, 4) in pixels of the image, "scores" (N, D), "classes" (N, D) and "counts" (N,), how many of the D
hold a detection, the best first; with --locations "boxes" (N, R, 4) and "scores" (N, R, K). Thresholds are those of the
config, overrides included. docs/deploying.md says more.
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="LazyConfig file of the run, or the name of a packaged one")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="any of the run's checkpoints")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="what is written")
    parser.add_argument("--to", choices=("weights", *FORMATS), default="weights", help="the format (%(default)s)")
    parser.add_argument("--yacs", action="store_true", help="CONFIG is the config.yaml of a yacs run")
    parser.add_argument(
        "--locations",
        action="store_true",
        help="without thresholds and NMS: the file gives the box and the scores of every location",
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]} ({OPSET})"
    )
    parser.add_argument(
        "--int8",
        type=int,
        metavar="N",
        help="with --to onnx: quantise the convolutions, calibrated with N images of the config's training data",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="compare the file with the student on these (default: the first of the config's test data, else random)",
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="export weights that do not fit the student, the rest being random"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config; +KEY=VALUE for a new key"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser()
    args = parser.parse_intermixed_args(argv)  # overrides may come last
    if args.images:  # which take what follows
        args.overrides += [str(path) for path in args.images if "=" in str(path)]
        args.images = [path for path in args.images if "=" not in str(path)]
    for override in args.overrides:
        if "=" not in override:
            parser.error(f"{override!r} is no key=value override")
    if args.to == "weights" and (args.images or args.locations):
        parser.error(f"--images and --locations are for --to {', '.join(FORMATS)}")
    if args.opset is not None and args.to != "onnx":
        parser.error("--opset is for --to onnx")
    if args.opset is not None and args.opset not in OPSETS:
        parser.error(f"--opset is {args.opset}, expected {OPSETS[0]} to {OPSETS[-1]}")
    if args.int8 is not None and (args.to != "onnx" or args.locations or args.yacs):
        parser.error("--int8 is for --to onnx, without --locations and --yacs")
    if args.int8 is not None and args.int8 < 1:
        parser.error(f"--int8 is {args.int8}, expected the number of images to calibrate with")
    if args.yacs and args.overrides:
        parser.error("with --yacs there are no overrides: change the file")
    return args


def check_output(args: argparse.Namespace) -> None:
    """
    Check what can be known about the output before anything is read.

    Raises:
        ExportError: it is an input or a folder, or exists without ``--overwrite``; or weights are no .pth, which
            Detectron2 goes by.
    """
    path: Path = args.output
    inputs = [args.config, args.checkpoint.split("?")[0], *(args.images or ())]
    if args.to == "weights" and path.suffix != ".pth":
        raise ExportError(f"--output is {path}, expected a name that ends in .pth: Detectron2 goes by it.")
    if path.is_dir():
        raise ExportError(f"--output {path} is a folder, expected the name of a file.")
    for source in inputs:
        if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
            raise ExportError(f"--output {path} is what is read: give it another name.")
    if path.exists() and not args.overwrite:
        raise ExportError(f"--output {path} exists: add --overwrite to replace it.")


def describe_weights(student: LoadedStudent, path: Path) -> str:
    state = student.detector.state_dict()
    parameters = sum(p.numel() for p in student.detector.parameters())
    return (
        f"Wrote {path}: {type(student.detector).__name__}, {len(state)} tensors, {parameters} parameters, "
        f"{path.stat().st_size} bytes"
    )


def describe_checkpoint(student: LoadedStudent) -> list[str]:
    lines = []
    if student.misfit:
        lines.append(f"  WARNING: the checkpoint does not fit the student (--allow-partial): {student.misfit}")
    if student.distillation:
        lines.append(f"  left out of the model, {len(student.distillation)}: {', '.join(student.distillation)}")
    if student.entries:
        lines.append(f"  left out beside the model: {', '.join(student.entries)}")
    return lines


def describe_file(student: LoadedStudent, path: Path, kind: str, proof: Proof, on: str, outputs: str) -> list[str]:
    height, width = proof.images[0].size
    fixed = []
    if not proof.any_size:
        why = proof.other_size or "it fails on another size"
        fixed.append(f"  WARNING: only for images of {height}x{width} pixels; {why}")
    if not proof.any_batch:
        why = proof.batch or "it fails on two"
        fixed.append(f"  WARNING: only for one image at a time; {why}")
    channels = len(student.detector.get_buffer("pixel_mean"))
    return [
        f"Wrote {path}: {kind}, {path.stat().st_size} bytes",
        f"  compared on {on}; the worst {proof.worst}",
        *(fixed or [f"  compared in another size, {proof.other_size}", f"  compared in a batch, {proof.batch}"]),
        f"  takes images (N, {channels}, H, W), {student.input_format}, 0 to 255; returns {outputs}",
    ]


def choose_images(args: argparse.Namespace, student: LoadedStudent) -> tuple[list[Tensor], str]:
    """Images to compare on, and what they are."""
    if args.images:
        return images_of_files(args.images, student.input_format), f"{len(args.images)} given images"
    reason = "a yacs config's data are registered by its project: give --images"
    if not args.yacs:
        try:
            images = test_images(load_config(args.config, args.overrides), IMAGES)
            return images, f"{len(images)} images of dataloader.test"
        except (ValueError, OSError, ImportError) as error:
            reason = str(error).rstrip(".")
    return random_images(student.detector), f"a random image, since there are no others ({reason})"


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ExportError: a checkpoint or an option that cannot be exported; nothing was written.
        OSError: an input that cannot be read.
        ImportError: a package that the format needs is not installed.
    """
    check_output(args)
    names = None
    if args.yacs:
        student = load_yacs_student(args.config, args.checkpoint, allow_partial=args.allow_partial)
    else:
        cfg = load_config(args.config, args.overrides)
        student = load_student(cfg, args.checkpoint, allow_partial=args.allow_partial)
    if args.to == "weights":
        write_weights(student.detector, args.output)
        print("\n".join([describe_weights(student, args.output), *describe_checkpoint(student)]))
        return
    images, on = choose_images(args, student)
    if not args.yacs:
        names = class_names(cfg, num_classes_of(student.detector))  # known where the data are
    notes = {
        "producer": f"d2kd {d2kd.__version__}",
        "input_format": student.input_format,
        "classes": json.dumps(names or [str(i) for i in range(num_classes_of(student.detector))]),
    }
    options = dict(locations=args.locations, opset=args.opset or OPSET, notes=notes)
    kind, quantized = args.to, []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.onnx") if args.int8 else args.output
        calibration = train_images(cfg, args.int8) if args.int8 else []
        proof = write_file(student.detector, plain, kind, images, **options)
        if args.int8:
            share = write_int8(student.detector, plain, args.output, images, calibration)
            kind = "onnx, int8"
            quantized = [
                f"  calibrated with {len(calibration)} training images; finds {100 * share:.1f}% of the student's "
                f"detections on {on}; for what it costs in AP: d2kd analyze --onnx {args.output} --ap",
                "  the comparisons above are those of the file before quantisation",
            ]
    outputs = "boxes, scores of every location" if args.locations else "boxes, scores, classes, counts"
    lines = describe_file(student, args.output, kind, proof, on, outputs)
    print("\n".join([*lines, *quantized, *describe_checkpoint(student)]))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
