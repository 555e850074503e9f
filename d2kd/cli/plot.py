"""
Draw what runs have logged to metrics.json: AP, learning rate, each distillation term and its share in the gradient,
against iterations and seconds of training. Of outputs of d2kd compare: what each method reaches at the lengths of the
schedule that were trained, against the cost of training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2kd.cli import Parser, check_file, run_command
from d2kd.experiments.ceiling_figure import plot_ceiling
from d2kd.experiments.curves import read_metrics
from d2kd.experiments.figures import COST_LABELS
from d2kd.experiments.run_figure import plot_runs

COMMAND = "d2kd plot"
_KEYS = {
    *("config", "method", "seed", "max_iter", "cost_seconds", "device"),
    *("metric", "metrics", "metrics_on", "values", "values_on"),
}
EXAMPLES = """
examples:
  d2kd plot output/crosskd
  d2kd plot output/crosskd output/alone --output both.png
  d2kd plot output/compare_2000 output/compare_4000 output/compare_8000 --output ceiling.png
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    about = "a run's output folder, or its metrics.json; or the output of d2kd compare, or its results.json"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=about)
    parser.add_argument("--output", metavar="FILE.png", help="default: plot.png in the first run's folder")
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        FileNotFoundError: a folder has neither metrics.json nor results.json.
        ValueError: one run is named twice, runs and outputs of d2kd compare are mixed, a file is of neither, results
            share no axis, there is nothing to draw, or --output is no name of a PNG.
    """
    files = [_file(name) for name in args.runs]
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError("A run is named twice, expected each once.")
    check_file("--output", Path(args.output) if args.output else None)
    if args.output and Path(args.output).suffix.lower() != ".png":
        raise ValueError(f"--output is {args.output}, expected a name that ends in .png: the figure is a PNG.")
    output = Path(args.output) if args.output else files[0].with_name("plot.png")
    compared = [file.name.endswith("results.json") for file in files]
    if all(compared):
        plot_ceiling(output, [result for file in files for result in _results(file)])
    elif any(compared):
        raise ValueError(
            f"{args.runs[compared.index(True)]} is an output of d2kd compare and {args.runs[compared.index(False)]} a "
            "run, expected one kind: the runs of d2kd compare are in its folders CONFIG/METHOD/seedN."
        )
    else:
        folders = [file.parent for file in files]
        choices = [folder.resolve().name for folder in folders], [*map(str, folders)], [*map(str, files)]
        names = next(choice for choice in choices if len(set(choice)) == len(files))
        plot_runs(output, {name: _metrics(file) for name, file in zip(names, files)})
    print(output)


def _file(name: str) -> Path:
    path = Path(name)
    candidates = [path / "metrics.json", path / "results.json"] if path.is_dir() else [path]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{name} has no metrics.json, expected the output folder of a run, or of d2kd compare (results.json)."
        )
    return found


def _metrics(file: Path) -> dict[int, dict[str, Any]]:
    """What a run has logged."""
    records = read_metrics(file)
    for record in records.values():
        for key, value in record.items():
            if not _is_number(value):
                raise ValueError(f"{file} has {key} = {value!r}, expected numbers, as a run logs them.")
    return records


def _results(file: Path) -> list[dict[str, Any]]:
    """What d2kd compare found."""
    try:
        content = json.loads(file.read_bytes(), parse_constant=lambda _: None)  # NaN: no value
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}), expected the results.json of d2kd compare.") from error
    results = content.get("runs") if isinstance(content, dict) else None
    if not (isinstance(results, list) and all(map(_is_result, results))):
        raise ValueError(f"{file} is no results.json of d2kd compare, or of an earlier version: run it again there.")
    if not results:
        raise ValueError(f"{file} has no runs: there is nothing to draw.")
    return results


def _is_result(run: object) -> bool:
    if not (isinstance(run, dict) and _KEYS <= run.keys() and run["device"] in COST_LABELS):
        return False
    if not all(isinstance(run[key], dict) for key in ("metrics", "values")):
        return False
    numbers = run["metrics"].get(run["metric"]), run["values"].get(run["metric"]), run["cost_seconds"]
    return all(number is None or _is_number(number) for number in numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
