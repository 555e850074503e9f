"""
Check that d2kd reads a detector correctly, before a run is spent on it: its head and its inference run on made-up
maps. For a distilled model the student and the teacher are checked. No weights and no data are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from d2kd.cli import Parser, run_command
from d2kd.config import load_config
from d2kd.config.nodes import made, target_of
from d2kd.modeling import DistilledDetector, check_adapter

COMMAND = "d2kd check-adapter"
EXAMPLES = """
examples:
  d2kd check-adapter --config-file digits/fcos_crosskd.py
  d2kd check-adapter --config-file mine.py model.num_classes=3
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a LazyConfig file, or the name of a packaged config"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        TypeError, ValueError: the adapter of a detector does not fit it, or the config has no model.
        FileNotFoundError: there is no such config.
    """
    model = load_config(args.config_file, args.overrides).get("model")
    if model is None:
        raise ValueError(f"{args.config_file} has no model, expected a LazyConfig with a model node.")
    nodes = {"model": model}
    if target_of(model) is DistilledDetector:
        nodes = {"model.student": model.student}
        if model.get("teacher"):
            nodes["model.teacher.model"] = model.teacher.model
    for key, node in nodes.items():
        detector = made(node, key)
        try:
            report = check_adapter(detector)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key}: {error}") from error
        print(f"{key}: {report}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
