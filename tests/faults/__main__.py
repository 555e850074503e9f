"""
Kills real runs and continues them: `python3 -m tests.faults` prints how many end with the weights of a run that
nothing interrupted. It takes about 15 minutes on two cores.
"""

import argparse
import random
import tempfile
from pathlib import Path

from tests.faults.runs import PERIOD, Lab, Outcome


def tally(what: str, outcomes: list[Outcome]) -> bool:
    """Print the line of one experiment; returns whether all is well."""
    identical = sum(outcome.identical for outcome in outcomes)
    lost = max(outcome.lost for outcome in outcomes)
    print(f"{what}: {identical} of {len(outcomes)} identical, at most {lost} iterations trained again", flush=True)
    return identical == len(outcomes) and lost <= PERIOD


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="random kills of one process, each family (default: 20)")
    parser.add_argument("--rank-kills", type=int, default=10, help="random kills of two ranks (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills (default: 0)")
    args = parser.parse_args()
    rng, well = random.Random(args.seed), True
    with tempfile.TemporaryDirectory() as folder:
        for family in ("FCOS", "GFL") if args.kills else ():
            lab = Lab(Path(folder, family), family)
            outcomes = [lab.killed_at_random(f"kill{i}", rng) for i in range(args.kills)]
            well &= tally(f"{family}, killed at random", outcomes)
            if family == "FCOS":
                operations = lab.operations()
                outcomes = [lab.killed_at(f"operation{i}", x) for i, x in enumerate(operations)]
                well &= tally(f"{family}, killed before each operation of a save", outcomes)
        if args.rank_kills:
            lab = Lab(Path(folder, "ranks"), "FCOS", processes=2)
            outcomes = [lab.killed_at_random(f"kill{i}", rng) for i in range(args.rank_kills)]
            well &= tally("FCOS on two ranks, killed at random", outcomes)
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
