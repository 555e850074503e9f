"""
Check d2kd on a device: its numbers against the CPU's in fp32, fp16 and bf16, two ranks, the tests marked `device`, the
benchmark at 800x1333, and a training on the digits. It takes 8 minutes at most on a GPU. On the CPU everything is
small: that shows that the command works.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event

import torch

from d2kd.cli.benchmark import environment
from d2kd.cli.check_device_parts import LANES, PARTS, run_part
from d2kd.cli.check_device_table import Part, to_markdown
from d2kd.experiments import write_json

COMMAND = "d2kd check"
FOLDER = Path("output/device_check")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("check of a device")
    group.add_argument("--device", nargs="?", const="cuda", choices=("cuda", "cpu"), help="check it (cuda)")
    group.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the check (all)")


def run(args: argparse.Namespace) -> int:
    """
    Run the parts that were asked for, print their table and write the json. Logs and files go to :data:`FOLDER`.

    Returns:
        1 if anything failed, else 0.

    Raises:
        ValueError: the device is CUDA, and there is none.
    """
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device was found, expected a GPU that torch can use: look at nvidia-smi and at "
            "torch.version.cuda, or try the check itself with --device cpu."
        )
    found: dict[str, Part] = {}
    stop = Event()

    def run_lane(names: Sequence[str]) -> None:
        for name in names:
            if name in args.parts and not stop.is_set():
                found[name] = run_part(name, device.type, FOLDER.resolve(), stop)
                print(f"{name}: {found[name].seconds:.0f} s", file=sys.stderr, flush=True)

    for lanes in LANES:
        with ThreadPoolExecutor() as pool:
            try:
                list(pool.map(run_lane, lanes))
            except KeyboardInterrupt:
                stop.set()
                raise
    parts = {name: found[name] for name in PARTS if name in found}
    machine = environment(device)
    if args.json:
        command = shlex.join(["d2kd", "check", "--device", device.type, "--parts", *args.parts])
        figures = {name: asdict(part) for name, part in parts.items()}
        write_json(args.json, {"command": command, "environment": machine, "parts": figures})
    print(f"{machine['device']}, torch {machine['torch']}, d2kd {machine['commit']}\n")
    print(to_markdown(parts))
    failed = [name for name, part in parts.items() if part.failed]
    if failed:
        print(f"{COMMAND}: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
