"""
Runs of tiny.py in processes of their own, which are killed and continued. Not a test.

Each process is forked from a server that has imported all that a run needs, and has trained nothing.
"""

import io
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import BinaryIO

import torch
from detectron2.checkpoint import DetectionCheckpointer

from d2kd.cli import train as cli
from d2kd.engine import EMA_FILE
from tests.helpers import build_detector
from tests.own_project import write_project
from tests.processes import server

__all__ = ["PERIOD", "Lab", "Operation", "Outcome", "steps"]

CONFIG = str(Path(__file__).with_name("tiny.py"))
PERIOD = 3  # of tiny.py's checkpoints

#: What Python tells of before it happens to a file, and torch's writing, which it does not see.
EVENTS = ("open", "os.rename", "os.remove")
HALF = "half a write"


@dataclass(frozen=True)
class Operation:
    """An ``event`` of ``file`` (temporary names without what is random), after ``before`` such events."""

    event: str
    file: str
    before: int


@dataclass
class Outcome:
    """
    How a killed run ended when it was continued.

    Attributes:
        lost: iterations that were trained again.
        identical: its last weights, and their average, are those of the run that nothing interrupted.
        log: what it printed.
    """

    lost: int
    identical: bool
    log: str = field(repr=False)


class Lab:
    """
    Runs of one family in one folder; the first, "straight", is interrupted by nothing.

    Args:
        folder: is made; data, teacher and runs go there.
        family: of student and teacher.
        processes: ranks of a run.
    """

    def __init__(self, folder: Path, family: str, processes: int = 1) -> None:
        folder.mkdir(parents=True)
        write_project(folder)
        DetectionCheckpointer(build_detector(family, num_classes=2, seed=1), str(folder)).save("teacher")
        self.folder, self._ranks = folder, [] if processes == 1 else [f"--num-gpus={processes}"]
        self._environ = {
            "TINY_DATASET": str(folder / "data"),
            "FAULTS_TEACHER": str(folder / "teacher.pth"),
            "FAULTS_FAMILY": family,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._server = server()
        process = self.start("straight")
        self._wait_for_step("straight", process)
        started = time.monotonic()
        process.join()
        self._seconds = time.monotonic() - started
        assert process.exitcode == 0, self.log("straight")

    def start(
        self, name: str, *options: str, die_at: Operation | None = None, largest_file: int | None = None
    ) -> BaseProcess:
        """
        Start, or with ``--resume`` go on with, the run ``name``.

        Args:
            options: of the command.
            die_at: the process kills itself before it.
            largest_file: bytes that a file may have; beyond them it is as if the disk were full.
        """
        command = ["--config-file", CONFIG, *self._ranks, *options, f"train.output_dir={self.folder / name}"]
        log = str(self.folder / f"{name}.txt")
        process = self._server.Process(target=_run, args=(command, self._environ, log, die_at, largest_file))
        process.start()
        return process

    def log(self, name: str) -> str:
        """All that the processes of the run ``name`` have printed."""
        return (self.folder / f"{name}.txt").read_text()

    def killed_at_random(self, name: str, rng: random.Random) -> Outcome:
        """A run whose processes are all killed at some time between its first step and its end, and then continued."""
        process = self.start(name)
        self._wait_for_step(name, process)
        time.sleep(rng.uniform(0, self._seconds))
        if process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return self.continued(name)

    def signalled(self, name: str, number: signal.Signals) -> BaseProcess:
        """A run whose first process gets a signal after its first step."""
        process = self.start(name)
        self._wait_for_step(name, process)
        os.kill(process.pid or 0, number)
        process.join()
        return process

    def killed_at(self, name: str, operation: Operation) -> Outcome:
        """A run that is killed before ``operation``, and then continued."""
        process = self.start(name, die_at=operation)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{operation} did not happen: {self.log(name)}"
        return self.continued(name)

    def continued(self, name: str) -> Outcome:
        """Go on with the run ``name`` to its end, and compare it with the straight one."""
        reached = steps(self.folder / name)
        process = self.start(name, "--resume")
        process.join()
        log = self.log(name)
        starts = [int(x) for x in re.findall(r"Starting training from iteration (\d+)", log)]
        identical = process.exitcode == 0 and all(
            _same_weights(self.folder / name / file, self.folder / "straight" / file)
            for file in ("model_final.pth", EMA_FILE)
        )
        return Outcome(lost=reached - starts[-1] if len(starts) > 1 else 0, identical=identical, log=log)

    def operations(self) -> list[Operation]:
        """All that a run does to its second checkpoint, to its last, and when it removes the first."""
        process = self.start("watched", die_at=Operation("", "", 0))
        process.join()
        lines = [line.removeprefix("OPERATION ") for line in self.log("watched").splitlines() if "OPERATION" in line]
        second, first = (f"model_{PERIOD * n - 1:07d}.pth" for n in (2, 1))
        found = []
        for line in dict.fromkeys(lines):
            event, _, file = line.partition(" of ")
            if second in file or "model_final" in file or "last_checkpoint" in file:
                found.append(Operation(event, file, 1 if "last_checkpoint" in file else 0))
            elif first in file and event == "os.remove" and "partial" not in file:
                found.append(Operation(event, file, 0))
        return found

    def _wait_for_step(self, name: str, process: BaseProcess) -> None:
        while process.is_alive() and not steps(self.folder / name):
            time.sleep(0.01)


def _run(
    command: Sequence[str], environ: dict[str, str], log: str, die_at: Operation | None, largest_file: int | None
) -> None:
    """The process of a run."""
    os.setsid()  # its ranks are killed with it
    os.environ.update(environ)
    torch.set_num_threads(1)  # the server has imported torch without this environment
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    if die_at is not None:
        _watch(die_at)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.exit(cli.main(command))


def _watch(die_at: Operation) -> None:
    happened: dict[tuple[str, str], int] = {}

    def happens(event: str, path: object) -> None:
        name = re.sub(r"\.[0-9a-f]{16}(?=\.partial)", "", os.path.basename(os.fsdecode(str(path))))
        if "model_" not in name and "last_checkpoint" not in name:
            return
        os.write(2, f"OPERATION {event} of {name}\n".encode())
        if (event, name) == (die_at.event, die_at.file) and happened.get((event, name), 0) == die_at.before:
            os.kill(os.getpid(), signal.SIGKILL)
        happened[event, name] = happened.get((event, name), 0) + 1

    def save(entries: object, file: BinaryIO) -> None:
        happens("write", file.name)
        whole = io.BytesIO()
        whole_save(entries, whole)
        content = whole.getvalue()
        file.write(content[: len(content) // 2])
        file.flush()
        happens(HALF, file.name)
        file.write(content[len(content) // 2 :])

    whole_save, torch.save = torch.save, save
    sys.addaudithook(lambda event, args: happens(event, args[0]) if event in EVENTS else None)


def steps(folder: Path) -> int:
    """How many steps a run has logged; a line may be cut off."""
    path = folder / "metrics.json"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [re.search(r'"iteration": (\d+).*"total_loss"', line) for line in lines if line.endswith("}")]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _same_weights(path: Path, other: Path) -> bool:
    a, b = (torch.load(p)["model"] for p in (path, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
