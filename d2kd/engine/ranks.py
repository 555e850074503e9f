"""The processes of one run: started here, or by torchrun or SLURM's srun; how they meet and end."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import ProcessException

__all__ = ["Ranks", "launch_ranks", "names_the_wait", "ranks_of", "share_norm_statistics"]

#: What torchrun tells its processes, and what srun does.
_TORCHRUN = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
_SRUN = {"rank": "SLURM_PROCID", "world_size": "SLURM_NTASKS", "local_rank": "SLURM_LOCALID"}

#: What the errors of a collective operation have in their text; many are plain RuntimeErrors.
_OF_A_COLLECTIVE = re.compile(r"gloo/|NCCL|ProcessGroup")

#: How long the processes that srun started wait for one another to appear.
_MEETING = timedelta(minutes=5)

#: Seconds between asking a process to end and killing it.
_GRACE = 10


@dataclass(frozen=True)
class Ranks:
    """
    This process among those of a run that another program started.

    Attributes:
        launcher: "torchrun" or "srun".
        rank: of this process, from 0 to ``world_size`` - 1.
        world_size: number of processes.
        local_rank: of this process on its machine.
        local_size: number of processes on this machine, the same on all machines.
        url: where they meet: "env://" of torchrun, "tcp://HOST:PORT" of srun.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def ranks_of(environ: Mapping[str, str]) -> Ranks | None:
    """
    The rank that torchrun or srun gave to the process with these environment variables; None: neither started it, or
    it is alone.

    Raises:
        ValueError: some of torchrun's variables without the others, values that are no rank, or nodes that srun did
            not fill evenly.
    """
    if "RANK" in environ or "LOCAL_RANK" in environ:
        launcher, names, wanted = "torchrun", _TORCHRUN, [*_TORCHRUN.values(), "MASTER_ADDR", "MASTER_PORT"]
    elif "SLURM_PROCID" in environ and ("SLURM_NTASKS" in environ or "SLURM_STEP_NUM_TASKS" in environ):
        names = {**_SRUN, "world_size": "SLURM_STEP_NUM_TASKS"} if "SLURM_STEP_NUM_TASKS" in environ else _SRUN
        launcher, wanted = "srun", list(names.values())
    else:
        return None
    missing = [name for name in wanted if name not in environ]
    if missing:
        raise ValueError(
            f"{launcher} started this process, as its environment says, but {', '.join(missing)} is not set: start it "
            f"with {launcher}, or unset {', '.join(name for name in wanted if name in environ)}."
        )
    numbers = {field: _number(environ, name) for field, name in names.items()}
    if launcher == "srun":
        nodes = _number({"SLURM_NNODES": "1", **environ}, "SLURM_NNODES")
        if numbers["world_size"] % nodes:
            raise ValueError(
                f"srun started {numbers['world_size']} processes on {nodes} nodes, expected as many on each: give "
                "--ntasks-per-node."
            )
        numbers["local_size"] = numbers["world_size"] // nodes
    if not (0 <= numbers["rank"] < numbers["world_size"] and 0 <= numbers["local_rank"] < numbers["local_size"]):
        raise ValueError(
            f"{launcher} made this process rank {numbers['rank']} of {numbers['world_size']}, on its machine "
            f"{numbers['local_rank']} of {numbers['local_size']}, which no process can be: start it anew."
        )
    if numbers["world_size"] == 1:
        return None
    if launcher == "torchrun":
        return Ranks(launcher=launcher, **numbers, url="env://")
    host = environ.get("MASTER_ADDR") or _first_node(environ)
    # Without a port of the user's own: one for each step of a SLURM job, below those that Linux hands out by itself.
    job, step = (_number({name: "0", **environ}, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = environ.get("MASTER_PORT") or str(15000 + (job + 101 * step) % 10000)
    return Ranks(launcher=launcher, **numbers, url=f"tcp://{host}:{port}")


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"The environment variable {name} is {environ[name]!r}, expected a whole number.") from None


def _first_node(environ: Mapping[str, str]) -> str:
    """The first host of SLURM's list of nodes, such as ``gpu[003-005,9],cpu1``; this machine if there is one node."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    found = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if int(environ.get("SLURM_NNODES", 1)) == 1:
        return "127.0.0.1"
    if found is None:
        raise ValueError("srun started processes on several nodes, but SLURM_JOB_NODELIST is not set: set MASTER_ADDR.")
    return found[1] + (found[2] or "")


def launch_ranks(
    function: Callable[..., object],
    *args: object,
    processes: int,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
    timeout: timedelta,
) -> None:
    """
    Call ``function`` in each process of a run: in this one, if torchrun or srun started it, else in ``processes`` new
    ones. No process outlives this call.

    Args:
        function: to call; ``args`` are given to it.
        processes: how many on this machine, one for each GPU; 1 under torchrun or srun, which have started them.
        machines: on how many machines such a call is made.
        machine_rank: which of them this is.
        url: where they meet; "auto": a free port of this machine.
        timeout: how long a rank waits for the others.

    Raises:
        ValueError: see :func:`ranks_of`, or ``processes`` of a process that torchrun or srun started.
        KeyboardInterrupt: a signal has ended ``function`` on some rank.
    """
    ranks = ranks_of(os.environ)
    if ranks is None:
        if processes == machines == 1:
            function(*args)
            return
        with tempfile.TemporaryDirectory() as notes:
            try:
                with _ends_children():
                    launch(_noting, processes, machines, machine_rank, url, (function, args, notes), timeout)
            except (ProcessException, KeyboardInterrupt):
                if said := sorted(Path(notes).iterdir()):
                    raise KeyboardInterrupt(said[0].read_text()) from None
                raise
        return
    if processes * machines > 1:
        raise ValueError(
            f"{ranks.launcher} has started {ranks.world_size} processes, and --num-gpus and --num-machines ask for "
            f"{processes * machines} from each of them: leave these two out"
            + (", or, in a batch script without srun, unset SLURM_PROCID." if ranks.launcher == "srun" else ".")
        )
    _join(ranks, timeout)
    try:
        function(*args)
    finally:
        torch.distributed.destroy_process_group()


def _noting(function: Callable[..., object], args: tuple[object, ...], notes: str) -> None:
    """Call ``function`` and note what a KeyboardInterrupt says, which torch takes for a rank that has done its work."""
    try:
        function(*args)
    except KeyboardInterrupt as error:
        Path(notes, str(comm.get_rank())).write_text(str(error))
        sys.exit(128 + signal.SIGINT)


def _join(ranks: Ranks, timeout: timedelta) -> None:
    """Make this process one of a group, as Detectron2's ``launch`` does."""
    gpus = torch.cuda.device_count()
    if gpus:
        # One visible GPU: srun may show each process its own.
        if gpus < ranks.local_size and not (gpus == 1 and ranks.launcher == "srun"):
            raise ValueError(
                f"{ranks.launcher} has started {ranks.local_size} processes on this machine, which has {gpus} GPUs: "
                "start one for each GPU."
            )
        torch.cuda.set_device(ranks.local_rank if gpus > 1 else 0)
    torch.distributed.init_process_group(
        "nccl" if gpus else "gloo",
        store=_meet(ranks, timeout) if ranks.launcher == "srun" else None,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )
    comm.create_local_process_group(ranks.local_size)
    comm.synchronize()


def _meet(ranks: Ranks, timeout: timedelta) -> torch.distributed.TCPStore:
    """Wait for the other processes; not for long, since a batch script without srun waits for none that exist."""
    host, _, port = ranks.url.removeprefix("tcp://").rpartition(":")
    try:
        store = torch.distributed.TCPStore(
            host, int(port), ranks.world_size, is_master=ranks.rank == 0, timeout=min(timeout, _MEETING)
        )
    except (RuntimeError, TimeoutError) as error:
        raise ConnectionError(
            f"Rank {ranks.rank} of {ranks.world_size} waited at {ranks.url} for the others: start all of them with "
            f"srun, or, in a batch script without srun, unset SLURM_PROCID. ({str(error).splitlines()[0]})"
        ) from error
    store.set_timeout(timeout)
    return store


@contextmanager
def _ends_children() -> Iterator[None]:
    """
    End the processes that are left on leaving: after an error they may wait for one another forever. After a signal,
    handed on to them, they have the time that they need to write a checkpoint, until the next. A SIGTERM to this
    process alone raises SystemExit inside.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _terminate(None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        _terminate(_GRACE)


def _terminate(grace: float | None) -> None:
    """Ask all children to end, and kill those that have not after ``grace`` seconds each; None: wait."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(grace)
        child.kill()


def share_norm_statistics(model: nn.Module) -> None:
    """
    Give all ranks the main one's running statistics of batch norm, so that they evaluate what it saves: the ranks'
    weights are the same, but these are of each rank's own images. Every rank must call it.
    """
    if comm.get_world_size() > 1:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for statistics in (module.running_mean, module.running_var):
                    if statistics is not None:
                        torch.distributed.broadcast(statistics, 0)


@contextmanager
def names_the_wait(where: str) -> Iterator[None]:
    """
    Around work that waits for other ranks.

    Args:
        where: what the ranks were doing, such as "iteration 7".

    Raises:
        ConnectionError: a rank waited in vain, for one that hangs or has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if comm.get_world_size() == 1 or not _OF_A_COLLECTIVE.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise ConnectionError(
            f"Rank {comm.get_rank()} waited in {where} for another rank, which hangs or has ended: look at the other "
            f"ranks' logs (log.txt.rankN); train.ddp.timeout_minutes is how long a rank waits. ({reason})"
        ) from error
