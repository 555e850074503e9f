"""
Turn an OpenMMLab (MMDetection 2 or 3) checkpoint of GFL, ATSS, RetinaNet or FCOS on a ResNet into a Detectron2
checkpoint of the model in configs/common/models, to teach or to go on with. MMDetection itself is not needed.
docs/converting.md has the published files and what each option is for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from d2kd.cli import Parser, run_command
from d2kd.conversion import (
    FAMILIES,
    STYLES,
    check_output,
    convert,
    read_checkpoint,
    read_stated,
    summary,
    write_checkpoint,
)

COMMAND = "d2kd convert"
EXAMPLES = """
examples:
  d2kd convert gfl_r101_fpn_mstrain_2x_coco.pth gfl_r101.pth --detector gfl --depth 101
  d2kd convert IN.pth OUT.pth --detector fcos --depth 101 --norm-on-bbox --centerness-on-reg
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("input", metavar="IN.pth", help="OpenMMLab's checkpoint")
    parser.add_argument("output", metavar="OUT.pth", help="Detectron2's; written whole or not at all")
    parser.add_argument("--detector", required=True, choices=list(FAMILIES))
    parser.add_argument("--depth", required=True, type=int, choices=[18, 34, 50, 101], help="of the ResNet")
    parser.add_argument(
        "--style",
        choices=list(STYLES),
        help="of the ImageNet weights it was trained from, where the file has no config that says: pixel statistics, "
        "channel order, where bottlenecks stride (default: caffe for fcos, pytorch for the others)",
    )
    parser.add_argument(
        "--p6-from", choices=["c5", "p5"], help="a check; needed only where C5 and P5 have the same number of channels"
    )
    parser.add_argument("--centerness-on-reg", action="store_true", help="(fcos) its config has centerness_on_reg=True")
    parser.add_argument("--norm-on-bbox", action="store_true", help="(fcos) its config has norm_on_bbox=True")
    parser.add_argument("--ema", action="store_true", help="take the averaged copies ema_* instead of the weights")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read a file that carries more than weights: RUNS CODE OF THE FILE"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.pth if it exists")
    parser.add_argument("--keys", action="store_true", help="list every tensor and where it went")
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ConversionError: a file or an option that does not convert; nothing was written.
        FileNotFoundError: there is no such input.
    """
    check_output(args.output, checkpoint=args.input, force=args.force)
    state, meta = read_checkpoint(args.input, trust_pickle=args.trust_pickle)
    conversion = convert(
        state,
        args.detector,
        depth=args.depth,
        stated=read_stated(meta, args.detector),
        style=args.style,
        p6_from=args.p6_from,
        centerness_on_reg=args.centerness_on_reg,
        norm_on_bbox=args.norm_on_bbox,
        ema=args.ema,
    )
    write_checkpoint(conversion.model, args.output)
    print(summary(conversion, keys=args.keys))
    print(f"Wrote {os.path.abspath(args.output)}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
