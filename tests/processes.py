"""Processes for tests, forked from a server that has imported what most of them need, and has run nothing."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import Any

from torch.multiprocessing import start_processes

import d2kd.cli.train  # noqa: F401
import tests.helpers  # noqa: F401 - imported once, by the server

__all__ = ["on_two_ranks", "server"]


def server() -> ForkServerContext:
    """Where such processes are started; those of a test's process have one server."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def on_two_ranks(worker: Callable[..., None], *args: Any) -> None:
    """Call ``worker(rank, *args)`` in two processes. An error of one ends both, and is raised."""
    server()
    start_processes(worker, args, nprocs=2, start_method="forkserver")
