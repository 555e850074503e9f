"""The parts of d2kd check --device, each in a process of its own: one that fails or hangs leaves the others alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

import torch

from d2kd.cli.check_device_runs import check_benchmark, check_digits, check_tests
from d2kd.cli.check_device_steps import check_ranks, check_steps
from d2kd.cli.check_device_table import Part, Row
from d2kd.experiments import write_json
from d2kd.experiments.files import read_json

__all__ = ["LANES", "PARTS", "Check", "run_part"]


@dataclass(frozen=True)
class Check:
    """What a part runs, given the device and a folder for its files, and how many seconds it has on a GPU."""

    run: Callable[[torch.device, Path], list[Row]]
    seconds: float


PARTS: Mapping[str, Check] = {
    "benchmark": Check(check_benchmark, 100),
    "tests": Check(check_tests, 140),
    "steps": Check(check_steps, 150),
    "ranks": Check(check_ranks, 80),
    "digits": Check(check_digits, 370),
}
#: A CPU has so many times the seconds.
_ON_A_CPU = 4
#: Lists of parts that run one after the other, the lists of a tuple side by side: in all within 8 minutes. Nothing runs
#: beside the benchmark, and training on small images takes little of a GPU.
LANES: Sequence[Sequence[Sequence[str]]] = ((("benchmark",),), (("digits",), ("tests", "steps", "ranks")))


def run_part(name: str, device: str, folder: Path, stop: Event) -> Part:
    """
    Run a part in a new process, until ``stop`` is set at the latest; its output goes to ``folder``/NAME.log.

    Returns:
        its rows; if it did not end well, or not in its time, one that says so.
    """
    seconds, start = PARTS[name].seconds * (_ON_A_CPU if device == "cpu" else 1), time.monotonic()
    own, log = folder / name, folder / f"{name}.log"
    own.mkdir(parents=True, exist_ok=True)
    result = own / "rows.json"
    result.unlink(missing_ok=True)
    environ = os.environ | ({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if device == "cpu" else {})
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, device, str(own)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # so that all that it starts can be ended with it
        )
        while process.poll() is None and time.monotonic() - start < seconds and not stop.is_set():
            time.sleep(0.1)
        status = process.poll()
        _end(process)
    if status is None:
        return _failed(name, f"not done after {time.monotonic() - start:.0f} s", log, start)
    if status or not result.is_file():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return _failed(name, lines[-1] if lines else f"exit status {status}", log, start)
    return Part(seconds=time.monotonic() - start, rows=[Row(**row) for row in read_json(result)["rows"]])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all processes of its session that are left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _failed(name: str, why: str, log: Path, start: float) -> Part:
    row = Row(what=name, found=f"{why} (see {log})", ok=False)
    return Part(seconds=time.monotonic() - start, rows=[row])


def main(argv: Sequence[str]) -> int:
    """Run the part ``argv[0]`` on the device ``argv[1]`` with the folder ``argv[2]``, in this process."""
    name, device, folder = argv[0], torch.device(argv[1]), Path(argv[2])
    try:
        rows = PARTS[name].run(device, folder)
    except subprocess.CalledProcessError:
        return 1  # the command has said why, in the last line
    write_json(folder / "rows.json", {"rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
