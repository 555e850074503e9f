"""
Train and compare methods x detectors x seeds on the digits, with paired seeds: runs of one seed start from the
same weights and see the same data in the same order. A teacher is trained once, where the students' configs
expect it. Finished runs are not repeated and interrupted ones continue: run the same command again.

Choose on the val split; the test split is for what is reported at the end. It costs no training: the curves
are always of val, and --split test evaluates the final weights once more.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from d2kd.cli import fail
from d2kd.data.digits import prepare_digits
from d2kd.experiments import ALONE, ROOT, Experiment, JobError, build_jobs, enter_clone, run_jobs, write_report

# What a comparison sets itself: with another value, runs would not be where, or what, the tables say.
RESERVED = {
    "train.seed": "--seeds",
    "train.max_iter": "--max-iter",
    "train.output_dir": "--output",
    "dataloader.test.dataset.names": "--split",
}
EXAMPLES = """
examples:
  python tools/compare.py --detectors fcos --methods alone bckd crosskd --seeds 0 1 2 --processes 2
  python tools/compare.py --detectors fcos retinanet --methods alone crosskd --seeds 0 --stretch --split test
  python tools/compare.py --methods alone crosskd --output output/lr optimizer.lr=1e-3
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", default=["fcos"], help="default: fcos")
    parser.add_argument("--methods", nargs="+", default=[ALONE, "bckd", "crosskd"], help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, one thread each")
    parser.add_argument("--output", type=Path, help="default: output/compare in the clone")
    parser.add_argument("--max-iter", type=int, help="iterations of the students (default: their configs')")
    parser.add_argument("--split", choices=["val", "test"], default="val", help="reported on; default: val")
    parser.add_argument(
        "--stretch", action="store_true", help="add the student alone, at the CPU cost of each distilled run"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides for every student")
    return parser


def parse_experiment(argv: Sequence[str]) -> tuple[Experiment, int]:
    """The experiment and the number of processes that a command line asks for."""
    parser = argument_parser()
    # Taken out first: "--seeds 0 1 key=value" is what people type, and argparse reads as three seeds.
    overrides = tuple(arg for arg in argv if re.match(r"[A-Za-z_][\w.]*=", arg))
    args = parser.parse_args([arg for arg in argv if arg not in overrides])
    if args.overrides:
        parser.error(f"{args.overrides[0]!r} is no key=value override")
    for override in overrides:
        if (key := override.split("=")[0]) in RESERVED:
            parser.error(f"{key} is set by this tool: use {RESERVED[key]}")
    if args.stretch and (ALONE not in args.methods or set(args.methods) == {ALONE}):
        parser.error(f"--stretch needs {ALONE!r} and a distilled method among --methods")
    if args.processes < 1 or (args.max_iter is not None and args.max_iter < 1):
        parser.error("--processes and --max-iter must be at least 1")
    experiment = Experiment(
        configs=ROOT / "configs" / "digits",
        output=(args.output or ROOT / "output" / "compare").absolute(),
        detectors=tuple(dict.fromkeys(args.detectors)),
        methods=tuple(dict.fromkeys(args.methods)),
        seeds=tuple(dict.fromkeys(args.seeds)),
        overrides=overrides,
        max_iter=args.max_iter,
        stretch=args.stretch,
        split=args.split,
    )
    return experiment, args.processes


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    experiment, processes = parse_experiment(argv)
    enter_clone()
    try:
        jobs = build_jobs(experiment)
        prepare_digits()  # once, rather than in each of the first trainings
        failed = run_jobs(jobs, processes)
    except (ValueError, JobError) as e:
        return fail("compare.py", e)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where this one stopped.", file=sys.stderr)
        return 130
    report = write_report(experiment, shlex.join(["python", "tools/compare.py", *argv]))
    print(f"\n{report}\nWritten to {experiment.output}: results.md, results.json, curves.png")
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
