"""What one rank finds wrong, all ranks say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["raised_on_all_ranks"]

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
        device: of the process group, where each rank's flags are compared; None: ranks meet on the CPU.

    Yields:
        ``raise_if(flag, make_error)``: raise what ``make_error`` returns on leaving if ``flag``, a boolean on the
        device, is true. All flags are read at once, there.

    Raises:
        Exception: on a rank without an error of its own, the first other rank's: its number and its sentence, of the
            same kind if that is a ValueError, TypeError, FloatingPointError or OSError, else a RuntimeError.
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
        told = comm.all_gather(None if error is None else (_kind(error), str(error)))
        if error is None:
            rank, (kind, sentence) = next((rank, x) for rank, x in enumerate(told) if x is not None)
            raise _KINDS.get(kind, RuntimeError)(f"Rank {rank}: {sentence}")
    if error is not None:
        raise error


def _kind(error: Exception) -> str:
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "")


def _read(failed: bool, flags: list[Tensor], device: torch.device | None) -> tuple[bool, list[bool]]:
    """Whether ``failed`` or one of ``flags`` is true on any rank, and this rank's ``flags``."""
    several = comm.get_world_size() > 1
    if device is None or not (several or flags):
        own = [bool(flag) for flag in flags]
        failed = failed or any(own)
        return any(comm.all_gather(failed)) if several else failed, own
    own_flags = torch.stack([torch.full((), failed, device=device), *flags]).float()
    of_all = own_flags.amax(0, keepdim=True)
    if several:
        torch.distributed.all_reduce(of_all, op=torch.distributed.ReduceOp.MAX)
    any_failed, _, *own = torch.cat([of_all, own_flags]).bool().tolist()
    return any_failed, own
