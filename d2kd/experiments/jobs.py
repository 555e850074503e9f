"""Commands that run side by side, one after another where one needs another, with progress and an ETA."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import IO, NamedTuple

from d2kd.engine.stop import SAME_SIGNAL_SECONDS

__all__ = ["Command", "Job", "JobError", "Progress", "run_jobs", "short_path"]

STOP_SECONDS = 300  # between asking a command to end and killing it: a step and a checkpoint take their time


class JobError(ValueError):
    """A job that cannot be started, or did not do what it should have; the message says why."""


class Progress(NamedTuple):
    """How far a job is: iterations, and a word such as the AP so far ("" for none)."""

    done: int
    total: int
    note: str = ""

    def __str__(self) -> str:
        return f"{self.done}/{self.total} {self.note}".rstrip()


@dataclass(frozen=True)
class Command:
    """A command, its environment, and the folder that gets its output (``console.log``, appended to)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "console.log"


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Job:
    """
    The three functions are called in other threads, but never two of any job at the same time.

    Args:
        name: what people read; unique.
        kind: jobs of one kind take about as long per iteration.
        prepare: called when the job's turn comes; None where its work is done already. May raise JobError.
        finish: called when the command has returned 0; returns what to say of it. May raise JobError.
        progress: how far the job is; before it has started, an estimate of ``total`` is enough.
        needs: names of the jobs that must have succeeded before.
    """

    name: str
    kind: str
    prepare: Callable[[], Command | None]
    finish: Callable[[], str]
    progress: Callable[[], Progress]
    needs: tuple[str, ...] = ()


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    started: float
    done_before: int


def run_jobs(
    jobs: Sequence[Job], environments: Sequence[Mapping[str, str]], stream: IO[str] | None = None
) -> list[str]:
    """
    Run the jobs, in their order where they do not wait for others. A failed job does not stop those that do
    not need it. On Ctrl-C, SIGTERM or SIGHUP all commands are asked to end, with their children, and KeyboardInterrupt
    is raised; another signal some seconds later kills them.

    Args:
        jobs: what to run.
        environments: as many commands run at the same time, each with one of these added to its environment.
        stream: where events and progress go, by default stdout. On a terminal the progress is one line that
            is rewritten; otherwise it is a line every half minute.

    Returns:
        The names of the jobs that failed, or could not start because another one failed.

    Raises:
        ValueError: no environment, two jobs of one name, or a need that is no earlier job.
    """
    names: set[str] = set()
    for job in jobs:
        if job.name in names or not names.issuperset(job.needs):
            raise ValueError(f"Job {job.name!r} stands twice, or before what it needs: {', '.join(job.needs)}.")
        names.add(job.name)
    runner = _Runner(jobs, environments, stream or sys.stdout)
    with _one_interrupt() as again, ThreadPoolExecutor(len(environments)) as pool:
        try:
            return runner.run(pool)
        finally:
            runner.stop(again)


class _Runner:
    def __init__(self, jobs: Sequence[Job], environments: Sequence[Mapping[str, str]], stream: IO[str]) -> None:
        self.jobs, self.processes, self.stream, self.tty = jobs, len(environments), stream, stream.isatty()
        self.free = deque(environments)
        self.futures: dict[str, Future[bool]] = {}  # of the jobs whose turn has come: whether they succeeded
        self.running: dict[Job, _Running] = {}
        self.rates: dict[str, float] = {}  # kind -> seconds per iteration, evaluations included
        self.one_at_a_time = threading.Lock()  # held while functions of jobs are called
        self.stopping = False

    def run(self, pool: ThreadPoolExecutor) -> list[str]:
        next_status = time.monotonic() + 2
        while len(self.futures) < len(self.jobs) or self.unfinished():
            for job in self.startable():
                self.futures[job.name] = pool.submit(self.work, job)
            wait(self.unfinished(), max(0, next_status - time.monotonic()), FIRST_COMPLETED)
            if time.monotonic() >= next_status:
                self.status()
                next_status = time.monotonic() + (3 if self.tty else 30)
        return [name for name, future in self.futures.items() if not future.result()]

    def unfinished(self) -> list[Future[bool]]:
        return [future for future in self.futures.values() if not future.done()]

    def startable(self) -> list[Job]:
        """The next jobs, as many as threads are free. What they need has ended, whether it succeeded or not."""
        ended = {name: future.result() for name, future in self.futures.items() if future.done()}
        ready = [job for job in self.jobs if job.name not in self.futures and ended.keys() >= set(job.needs)]
        return ready[: self.processes - len(self.futures) + len(ended)]

    def work(self, job: Job) -> bool:
        """What a thread does: a job from beginning to end. Returns whether it succeeded."""
        try:
            self.say(f"{job.name}: {self.attempt(job)}")
        except JobError as e:
            self.say(f"{job.name}: FAILED, {e}")
            return False
        return True

    def attempt(self, job: Job) -> str:
        with self.one_at_a_time:
            broken = [need for need in job.needs if not self.futures[need].result()]
            if broken or self.stopping:
                raise JobError(f"not started, since it needs: {', '.join(broken)}")
            command = job.prepare()
            if self.stopping:
                raise JobError("not started, since all is stopped")
            if command is None:
                return f"already done ({job.finish()})"
            done = job.progress().done
            environment = self.free.popleft()  # there are as many as threads
            process = _start(command, environment)
            running = self.running[job] = _Running(process, time.monotonic(), done)
            resumed = f" from iteration {done}" if done else ""
            self.say(f"{job.name}: started{resumed} (log: {short_path(command.log)})")
        code = process.wait()
        _send(process, signal.SIGKILL)  # children that outlive it
        with self.one_at_a_time:
            del self.running[job]
            self.free.append(environment)
            if code != 0:
                with open(command.log, errors="replace") as log:
                    tail = "".join(f"\n    {line.rstrip()}" for line in deque(log, 15))
                raise JobError(f"exit code {code}; the last lines of {short_path(command.log)}:{tail}")
            seconds = round(time.monotonic() - running.started)
            return f"done in {timedelta(seconds=seconds)} ({job.finish()})"

    def status(self) -> None:
        with self.one_at_a_time:
            if not self.running:
                return
            waiting = [job for job in self.jobs if job.name not in self.futures]
            left = {job: job.progress() for job in [*self.running, *waiting]}
            for job, run in self.running.items():
                if (done := left[job].done - run.done_before) > 0:
                    self.rates[job.kind] = (time.monotonic() - run.started) / done
            succeeded = sum(future.done() and future.result() for future in self.futures.values())
            parts = [f"{succeeded}/{len(self.jobs)} done", *(f"{job.name} {left[job]}" for job in self.running)]
        line = " | ".join([*parts, self.eta(left)])
        if self.tty:
            self.say(line[: shutil.get_terminal_size().columns - 1], end="")
        else:
            self.say(line)

    def eta(self, left: Mapping[Job, Progress]) -> str:
        """From the rates so far: neither less than one chain of needs takes, nor than the work shared by all."""
        if not self.rates:
            return "ETA ?"
        typical = fmean(self.rates.values())
        seconds = {job: max(0, p.total - p.done) * self.rates.get(job.kind, typical) for job, p in left.items()}
        chains: dict[str, float] = {}
        for job in left:
            chains[job.name] = seconds[job] + max((chains.get(need, 0.0) for need in job.needs), default=0.0)
        most = max([sum(seconds.values()) / self.processes, *chains.values()])
        return f"ETA {timedelta(seconds=round(most))}"

    def say(self, text: str, end: str = "\n") -> None:
        if not self.stopping:  # what is stopped has not failed
            print(("\r\033[K" if self.tty else "") + text + end, end="", file=self.stream, flush=True)

    def stop(self, at_once: Callable[[], bool]) -> None:
        """
        End the commands that still run; there are none after a run that was not interrupted.

        Args:
            at_once: whether they are to be killed before ``STOP_SECONDS`` are over.
        """
        if self.running:
            self.say("Stopping: what runs may write its checkpoint first. Once more, 3 seconds later: kill it.")
        self.stopping = True
        self._send_all(signal.SIGTERM)
        latest = time.monotonic() + STOP_SECONDS
        while wait(self.unfinished(), 0.2).not_done:
            if at_once() or time.monotonic() > latest:
                self._send_all(signal.SIGKILL)

    def _send_all(self, number: signal.Signals) -> None:
        for run in list(self.running.values()):
            _send(run.process, number)


def _start(command: Command, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(command.folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(command.log, "ab") as log:
            return subprocess.Popen(
                command.argv,
                env={**command.env, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches us alone, and we end it with its own children
                pass_fds=(lock,),  # the lock lives as long as the command, even if we are killed
            )
    except BlockingIOError:
        raise JobError(f"another process is running in {command.folder}: wait for it") from None
    finally:
        os.close(lock)


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a command and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def _one_interrupt() -> Iterator[Callable[[], bool]]:
    """
    SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, the first of them alone, since work ends then. Yields
    what says whether another has come some seconds later.
    """
    received: list[float] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(time.monotonic())
        if len(received) == 1:
            raise KeyboardInterrupt

    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    numbers = [n for n in signals if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield lambda: bool(received) and received[-1] - received[0] > SAME_SIGNAL_SECONDS
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def short_path(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
