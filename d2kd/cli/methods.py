"""
List the distillation methods: the paper, what is reconstructed, the detectors that have a preset, what student and
teacher need, and each loss with its source and regions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2kd.cli import Parser, run_command
from d2kd.methods import describe, list_methods

COMMAND = "d2kd methods"


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: there is no such method.
    """
    print(describe(args.name) if args.name else list_methods())


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog=COMMAND, description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this method")
    return run_command(COMMAND, run, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
