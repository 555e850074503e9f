"""Commands that run side by side, one after another where one needs another, with progress and an ETA."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["Command", "Job", "JobError", "Progress", "duration", "run_jobs"]

_STOP_SECONDS = 10  # between asking a process to end and ending it


class JobError(RuntimeError):
    """A job that cannot be started, or did not do what it should have; the message says why."""


class Progress(NamedTuple):
    """How far a job is: iterations, and a word such as the AP so far ("" for none)."""

    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Command:
    """A command, its environment, and the folder that gets its output (``console.log``, appended to)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "console.log"


@dataclass(frozen=True, eq=False)  # itself is its identity
class Job:
    """
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


@dataclass
class _Running:
    command: Command
    process: subprocess.Popen
    started: float
    done_before: int
    last: Progress = field(default_factory=lambda: Progress(0, 0))


def run_jobs(jobs: Sequence[Job], processes: int, stream: IO[str] | None = None) -> list[str]:
    """
    Run the jobs, in their order where they do not wait for others. A failed job does not stop those that do
    not need it. On Ctrl-C (or SIGTERM) all commands are ended and KeyboardInterrupt is raised.

    Args:
        jobs: what to run.
        processes: how many commands run at the same time, >= 1.
        stream: where events and progress go, by default stdout. On a terminal the progress is one line that
            is rewritten; otherwise it is a line every half minute.

    Returns:
        The names of the jobs that failed, or could not start because another one failed.

    Raises:
        ValueError: ``processes`` < 1, two jobs of one name, or a need that is no earlier job.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}, expected at least 1.")
    names: set[str] = set()
    for job in jobs:
        missing = [need for need in job.needs if need not in names]
        if job.name in names or missing:
            raise ValueError(f"Job {job.name!r} stands twice, or before what it needs: {missing}.")
        names.add(job.name)
    return _Runner(jobs, processes, stream or sys.stdout).run()


class _Runner:
    def __init__(self, jobs: Sequence[Job], processes: int, stream: IO[str]) -> None:
        self.waiting = list(jobs)
        self.running: dict[Job, _Running] = {}
        self.succeeded: set[str] = set()
        self.failed: list[str] = []
        self.processes, self.stream, self.count = processes, stream, len(jobs)
        self.rates: dict[str, float] = {}  # kind -> seconds per iteration, evaluations included
        self.tty = stream.isatty()
        self.next_status = time.monotonic() + 2

    def run(self) -> list[str]:
        with _sigterm_interrupts():
            try:
                while self.waiting or self.running:
                    self.collect()
                    self.start()
                    self.status()
                    if self.running:
                        time.sleep(0.2)
            finally:
                self.stop()
        return self.failed

    def start(self) -> None:
        for job in list(self.waiting):
            broken = [need for need in job.needs if need in self.failed]
            if broken:
                self.waiting.remove(job)
                self.fail(job, f"not started, since it needs: {', '.join(broken)}")
            elif len(self.running) < self.processes and self.succeeded.issuperset(job.needs):
                self.waiting.remove(job)
                try:
                    self.launch(job)
                except JobError as e:
                    self.fail(job, str(e))

    def launch(self, job: Job) -> None:
        command = job.prepare()
        if command is None:
            self.succeeded.add(job.name)
            self.say(f"{job.name}: is there already ({job.finish()})")
            return
        command.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(command.folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobError(f"another process is running in {command.folder}: wait for it") from None
            with open(command.log, "ab") as log:
                process = subprocess.Popen(
                    command.argv,
                    env=dict(command.env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C reaches us alone, and we end it with its own children
                    pass_fds=(lock,),  # the lock lives as long as the command, even if we are killed
                )
        finally:
            os.close(lock)
        progress = job.progress()
        self.running[job] = _Running(command, process, time.monotonic(), progress.done, progress)
        resumed = f" from iteration {progress.done}" if progress.done else ""
        self.say(f"{job.name}: started{resumed} (log: {_short(command.log)})")

    def collect(self) -> None:
        for job, run in list(self.running.items()):
            if run.process.poll() is None:
                continue
            del self.running[job]
            code = run.process.returncode
            try:
                if code != 0:
                    raise JobError(f"exit code {code}; the last lines of {_short(run.command.log)}:")
                self.note_rate(job, run)
                text = job.finish()
            except JobError as e:
                self.fail(job, str(e))
                if code != 0:
                    self.say("\n".join(f"    {line}" for line in _tail(run.command.log)))
            else:
                self.succeeded.add(job.name)
                self.say(f"{job.name}: done in {duration(time.monotonic() - run.started)} ({text})")

    def fail(self, job: Job, why: str) -> None:
        self.failed.append(job.name)
        self.say(f"{job.name}: FAILED, {why}")

    def note_rate(self, job: Job, run: _Running) -> None:
        run.last = job.progress()
        done = run.last.done - run.done_before
        if done > 0:
            self.rates[job.kind] = (time.monotonic() - run.started) / done

    def eta(self) -> float | None:
        """Seconds until everything is done; None before the first rate is known."""
        for job, run in self.running.items():
            self.note_rate(job, run)
        if not self.rates:
            return None
        typical = sum(self.rates.values()) / len(self.rates)
        left = {}
        for job in [*self.running, *self.waiting]:
            progress = self.running[job].last if job in self.running else job.progress()
            rate = self.rates.get(job.kind, typical)
            left[job.name] = max(0, progress.total - progress.done) * rate
        # Neither less than what one chain of needs takes, nor than the work shared by all processes.
        chain: dict[str, float] = {}
        for job in [*self.running, *self.waiting]:
            chain[job.name] = left[job.name] + max((chain.get(need, 0.0) for need in job.needs), default=0.0)
        return max(sum(left.values()) / self.processes, *chain.values())

    def status(self) -> None:
        if not self.running or time.monotonic() < self.next_status:
            return
        self.next_status = time.monotonic() + (3 if self.tty else 30)
        eta = self.eta()
        parts = [f"{len(self.succeeded)}/{self.count} done"]
        for job, run in self.running.items():
            done, total, note = run.last
            parts.append(f"{job.name} {done}/{total}" + (f" {note}" if note else ""))
        parts.append("ETA ?" if eta is None else f"ETA {duration(eta)}")
        line = " | ".join(parts)
        if self.tty:
            self.stream.write("\r\033[K" + line[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()
        else:
            print(line, file=self.stream, flush=True)

    def say(self, text: str) -> None:
        print(("\r\033[K" if self.tty else "") + text, file=self.stream, flush=True)

    def stop(self) -> None:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for run in self.running.values():
                if run.process.poll() is None:
                    os.killpg(run.process.pid, sig)
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline and any(r.process.poll() is None for r in self.running.values()):
                time.sleep(0.05)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _tail(path: Path, lines: int = 15) -> list[str]:
    with open(path, "rb") as f:
        f.seek(max(0, path.stat().st_size - 8192))
        return f.read().decode(errors="replace").splitlines()[-lines:]


def _short(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``, ``4000`` -> ``1:06:40``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
