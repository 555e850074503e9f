"""
Get a public data set of real photographs: small images, COCO annotations, three splits (docs/real_data.md). The folder
is complete or not there at all.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from d2kd.cli import Parser, check_folder, run_command
from d2kd.data.public import SETS, prepare_public_data

COMMAND = "d2kd data"
EXAMPLES = "\n".join(
    [
        "data sets:",
        *(f"  {each.name:10} {each.about}; {each.licence}" for each in SETS.values()),
        "",
        "examples:",
        "  d2kd data get cards                        from GitHub, at a fixed commit",
        "  d2kd data get cards --from cards.zip       from the repository's archive, or the unpacked repository",
        "  d2kd data get cards --from other/cards     from a folder that this command has made",
    ]
)


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    get = commands.add_parser(
        "get", help="make the folder of a data set, or check the one that is there", description="Get a data set."
    )
    get.add_argument("name", choices=list(SETS), metavar="NAME", help=", ".join(SETS))
    get.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        help="the repository's zip archive or unpacked folder, or a folder of the data set (default: download it)",
    )
    get.add_argument(
        "--root", help="folder that holds the data sets' folders (default: $DETECTRON2_DATASETS, or datasets)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: the folder holds something else, or the source is not the data set.
        OSError: the download failed, a file is missing, or the disk is full.
    """
    if args.root:
        check_folder("--root", Path(args.root))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    public_set = SETS[args.name]
    print(f"{public_set.name}: {public_set.about}")
    print(f"  origin       {public_set.origin}")
    print(f"  licence      {public_set.licence}")
    print(f"  attribution  {public_set.attribution}")
    print(prepare_public_data(public_set, args.source, args.root))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
