"""Processes for tests, forked from a server that has imported what most of them need, and has run nothing."""

import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch.multiprocessing import start_processes

import d2kd.cli.train  # noqa: F401 - imported once, by the server
import tests.helpers  # noqa: F401
from d2kd.__main__ import main

__all__ = ["Command", "on_two_ranks", "server"]


def server() -> ForkServerContext:
    """Where such processes are started; those of a test's process have one server."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def on_two_ranks(worker: Callable[..., None], *args: Any) -> None:
    """Call ``worker(rank, *args)`` in two processes. An error of one ends both, and is raised."""
    server()
    start_processes(_with_environ, (worker, dict(os.environ), args), nprocs=2, start_method="forkserver")


def _with_environ(rank: int, worker: Callable[..., None], environ: dict[str, str], args: tuple[Any, ...]) -> None:
    """The server has the environment of the first test that used it."""
    os.environ.update(environ)
    worker(rank, *args)


class Command:
    """
    ``d2kd`` in a process of its own, on one thread, which leads a process group; its interface is a part of
    ``subprocess.Popen``'s.
    """

    def __init__(self, *arguments: str, environ: Mapping[str, str]) -> None:
        self._output = NamedTemporaryFile(), NamedTemporaryFile()
        files = tuple(file.name for file in self._output)
        self._process = server().Process(target=_run, args=(arguments, dict(environ), files))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"d2kd still runs after {timeout} seconds"
        output, errors = (Path(file.name).read_text() for file in self._output)
        return output, errors


def _run(arguments: tuple[str, ...], environ: dict[str, str], files: tuple[str, str]) -> None:
    os.setpgrp()
    os.environ.clear()
    os.environ.update(environ)
    for stream, file in zip((1, 2), files):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    torch.set_num_threads(1)
    sys.exit(main(arguments))
