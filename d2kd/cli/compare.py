"""
Train the detector of a config with several methods x seeds and compare them, with paired seeds: runs of one seed start
from the same weights and see the same data in the same order. A teacher whose checkpoint does not exist is trained
first. Finished runs are not repeated and interrupted ones continue: run the same command again.

Choose on dataloader.test, on which the curves are measured. --report evaluates the final weights once more, on other
data, for the table: --report dataloader.test.dataset.names=NAME, and dataloader.evaluator.dataset_name=NAME too where
the config's evaluator names its dataset itself.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from d2kd.cli import Parser, check_folder, run_command
from d2kd.config import ALONE, CONFIG
from d2kd.experiments import Experiment, build_jobs, environments, run_jobs, write_report

COMMAND = "d2kd compare"

# What a comparison sets itself: with another value, runs would not be where, or what, the tables say.
RESERVED = {
    "train.seed": "--seeds",
    "train.max_iter": "--max-iter",
    "train.output_dir": "--output",
    "model.losses": "--methods, or another config",
}
EVALUATION = ("dataloader.test.", "dataloader.evaluator.")
EXAMPLES = """
FILE is a path, or the name of a config that comes with d2kd; its model is distilled (d2kd.distill).
METHOD is "alone" (no distillation), "config" (the losses that the config has), or a name of `d2kd methods`.

examples:
  d2kd compare --config-file mine.py --methods alone config crosskd tid --seeds 0 1 2
  d2kd compare --config-file mine.py --methods alone crosskd --output output/lr optimizer.lr=1e-3
  d2kd compare --config-file digits/fcos_small_crosskd.py --processes 2 --stretch \\
      --report dataloader.test.dataset.names=digits_test
"""
KEY_VALUE = re.compile(r"\+?[A-Za-z_][\w.]*=")


def argument_parser() -> argparse.ArgumentParser:
    usage = f"{COMMAND} --config-file FILE [FILE ...] [options] [key=value ...]"
    parser = Parser(prog=COMMAND, usage=usage, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--config-file", nargs="+", required=True, metavar="FILE", help="one config or several")
    add("--methods", nargs="+", default=[ALONE, CONFIG], metavar="METHOD", help="default: alone config")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("--teacher-config", metavar="FILE", help="trains a missing teacher (default: a *teacher.py beside FILE)")
    add("--output", type=Path, default=Path("output/compare"), help="default: output/compare")
    add("--max-iter", type=int, help="iterations of the students (default: their configs')")
    add("--processes", type=int, default=1, help="trainings side by side; each has one thread, or a GPU")
    add("--stretch", action="store_true", help="add the student alone, trained at the cost of each distilled run")
    add("--report", nargs="+", default=[], metavar="key=value", help="evaluate the final weights with these overrides")
    add(
        "overrides", nargs="*", metavar="key=value", help="config overrides for every student; +key=value for a new key"
    )
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for; beside its options ``command``, that line itself."""
    parser = argument_parser()
    # Taken out first: "--seeds 0 1 key=value" is what people type, and argparse reads as three seeds.
    rest: list[str] = []
    overrides: list[str] = []
    option = ""
    for arg in argv:
        option = arg if arg.startswith("--") else option
        (overrides if KEY_VALUE.match(arg) and option != "--report" else rest).append(arg)
    args = parser.parse_args(rest)
    if args.overrides:
        parser.error(f"{args.overrides[0]!r} is no key=value override")
    for override in overrides:
        for key, instead in RESERVED.items():
            if re.match(rf"\+?{re.escape(key)}[.=]", override):
                parser.error(f"{key} is set by this tool: use {instead}")
    for override in args.report:
        if not (KEY_VALUE.match(override) and override.removeprefix("+").startswith(EVALUATION)):
            expected = "key=value of dataloader.test or dataloader.evaluator"
            parser.error(f"--report {override}: expected {expected}; overrides for training come before --report")
    if args.stretch and (ALONE not in args.methods or set(args.methods) == {ALONE}):
        parser.error(f"--stretch needs {ALONE!r} and a distilled method among --methods")
    if min(args.seeds) < 0:
        parser.error("--seeds must be 0 or more")
    if args.processes < 1 or (args.max_iter is not None and args.max_iter < 1):
        parser.error("--processes and --max-iter must be at least 1")
    args.overrides = overrides
    args.command = shlex.join([*COMMAND.split(), *argv])
    return args


def experiment_of(args: argparse.Namespace) -> Experiment:
    """
    The experiment that a command line asks for.

    Raises:
        ValueError: two configs of one name.
    """
    return Experiment(
        configs=tuple(dict.fromkeys(args.config_file)),
        output=args.output,
        methods=tuple(dict.fromkeys(args.methods)),
        seeds=tuple(dict.fromkeys(args.seeds)),
        overrides=tuple(args.overrides),
        max_iter=args.max_iter,
        stretch=args.stretch,
        report=tuple(args.report),
        teacher_config=args.teacher_config,
    )


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        JobError: a folder holds another run, or the evaluator does not return the metric.
        ValueError, OSError: a config, method or dataset that cannot be used.
    """
    check_folder("--output", args.output)
    experiment = experiment_of(args)
    jobs = build_jobs(experiment)
    failed = run_jobs(jobs, environments(experiment.device, args.processes))
    report, written = write_report(experiment, args.command)
    print(f"\n{report}")
    if written:
        print(f"Written to {experiment.output}: {', '.join(written)}")
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_resumable(command: str, function: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """:func:`d2kd.cli.run_command` of what goes on where it stopped, if it is called again."""

    def resumable(args: argparse.Namespace) -> int:
        try:
            return function(args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("The same command goes on where this one stopped.") from None

    torch.set_num_threads(1)  # of evaluations here: a second gains little on small images, and stalls the trainings
    return run_command(command, resumable, args)


def main(argv: Sequence[str] | None = None) -> int:
    return run_resumable(COMMAND, run, parse_args(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
