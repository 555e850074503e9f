"""
Draw what runs have logged to metrics.json: AP, each distillation term, the share of each term in the gradient, and the
learning rate, against iterations and seconds of training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2kd.cli import Parser, check_file, run_command
from d2kd.experiments.curves import read_metrics
from d2kd.experiments.run_figure import plot_runs

COMMAND = "d2kd plot"
EXAMPLES = """
examples:
  d2kd plot output/crosskd
  d2kd plot output/crosskd output/alone --output both.png
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's output folder, or its metrics.json")
    parser.add_argument("--output", metavar="FILE.png", help="default: plot.png in the first run's folder")
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        FileNotFoundError: a run has no metrics.json.
        ValueError: one run is named twice, or nothing is logged.
    """
    files = [path / "metrics.json" if path.is_dir() else path for path in map(Path, args.runs)]
    for name, file in zip(args.runs, files):
        if not file.is_file():
            raise FileNotFoundError(f"{name} has no metrics.json, expected the output folder of a run.")
    if len(set(files)) < len(files):
        raise ValueError("A run is named twice, expected each once.")
    check_file("--output", Path(args.output) if args.output else None)
    output = Path(args.output) if args.output else files[0].with_name("plot.png")
    names = [file.parent.resolve().name for file in files]
    if len(set(names)) < len(names):
        names = [str(file.parent) for file in files]
    plot_runs(output, {name: read_metrics(file) for name, file in zip(names, files)})
    print(output)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
