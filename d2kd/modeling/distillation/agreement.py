"""What one rank finds wrong, all ranks say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["on_any_rank", "raised_on_all_ranks"]

#: Kinds of errors that keep their kind on the other ranks.
_KINDS = {kind.__name__: kind for kind in (ValueError, TypeError, FloatingPointError, FileNotFoundError, OSError)}


@contextmanager
def raised_on_all_ranks(
    device: torch.device | None = None,
) -> Iterator[Callable[[Tensor, Callable[[], Exception]], None]]:
    """
    Every rank enters it at the same place; an error that one of them raises inside is raised on all. Nothing inside
    may wait for other ranks.

    Args:
        device: of the process group, where each rank's flags are compared; None: on the CPU, whatever the group's
            backend.

    Yields:
        ``raise_if(flag, make_error)``: raise what ``make_error`` returns on leaving if ``flag``, a boolean on the
        device, is true. All flags are read at once, there.

    Raises:
        Exception: on a rank without an error of its own, the first other rank's: its number and its sentence, as a
            ValueError, TypeError, FloatingPointError or OSError if it is one, else a RuntimeError that names its kind.
    """
    error: Exception | None = None
    flags: list[Tensor] = []
    makers: list[Callable[[], Exception]] = []

    def raise_if(flag: Tensor, make_error: Callable[[], Exception]) -> None:
        flags.append(flag)
        makers.append(make_error)

    try:
        yield raise_if
    except Exception as raised:
        error = raised
    failed, own = _read(error is not None, flags, device)
    if error is None:
        error = next((make_error() for flag, make_error in zip(own, makers) if flag), None)
    if failed and comm.get_world_size() > 1:
        told = comm.all_gather(None if error is None else _told(error))
        if error is None:
            rank, (kind, sentence) = next((rank, x) for rank, x in enumerate(told) if x is not None)
            raise _KINDS.get(kind, RuntimeError)(f"Rank {rank}: {sentence}")
    if error is not None:
        raise error


def on_any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank; every rank must call it. No rank waits for a device."""
    return _read(flag, [], None)[0]


def _told(error: Exception) -> tuple[str, str]:
    """What the other ranks are told of an error: its kind, and its sentence."""
    for kind in type(error).__mro__:
        if kind.__name__ in _KINDS:
            return kind.__name__, str(error)
    return "RuntimeError", f"{type(error).__name__}: {error}"


def _read(failed: bool, flags: list[Tensor], device: torch.device | None) -> tuple[bool, list[bool]]:
    """Whether ``failed`` or one of ``flags`` is true on any rank, and this rank's ``flags``."""
    several = comm.get_world_size() > 1
    if not (several or flags):
        return failed, []
    place = device or torch.device("cpu")
    own_flags = torch.stack([torch.full((), failed, device=place), *(flag.to(place) for flag in flags)]).float()
    of_all = own_flags.amax(0, keepdim=True)
    if several:
        on_the_host = device is None and torch.distributed.get_backend() == "nccl"
        group = _host_group() if on_the_host else torch.distributed.group.WORLD
        torch.distributed.all_reduce(of_all, op=torch.distributed.ReduceOp.MAX, group=group)
    any_failed, _, *own = torch.cat([of_all, own_flags]).bool().tolist()
    return any_failed, own


@cache
def _host_group() -> torch.distributed.ProcessGroup | None:
    """All ranks, for tensors on the CPU, which NCCL does not take."""
    group = torch.distributed.new_group(backend="gloo")
    return group if isinstance(group, torch.distributed.ProcessGroup) else None  # every rank is in it
