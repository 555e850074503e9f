"""What one rank finds wrong, all ranks say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.utils import comm

__all__ = ["raised_on_all_ranks"]

#: Kinds of errors that keep their kind on the other ranks.
_KINDS = {kind.__name__: kind for kind in (ValueError, TypeError, FloatingPointError, FileNotFoundError, OSError)}


@contextmanager
def raised_on_all_ranks(device: torch.device | None = None) -> Iterator[None]:
    """
    Every rank enters it at the same place; an error that one of them raises inside is raised on all. Nothing inside
    may wait for other ranks.

    Args:
        device: of the process group, where each rank's flag is compared; None: ranks meet on the CPU.

    Raises:
        Exception: on a rank without an error of its own, the first other rank's: its number and its sentence, of the
            same kind if that is a ValueError, TypeError, FloatingPointError or OSError, else a RuntimeError.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if comm.get_world_size() > 1 and _any(error is not None, device):
        told = comm.all_gather(None if error is None else (type(error).__name__, str(error)))
        if error is None:
            rank, (kind, sentence) = next((rank, x) for rank, x in enumerate(told) if x is not None)
            raise _KINDS.get(kind, RuntimeError)(f"Rank {rank}: {sentence}")
    if error is not None:
        raise error


def _any(flag: bool, device: torch.device | None) -> bool:
    """Whether ``flag`` is true on any rank."""
    if device is None:
        return any(comm.all_gather(flag))
    failed = torch.tensor([flag], dtype=torch.float32, device=device)
    torch.distributed.all_reduce(failed, op=torch.distributed.ReduceOp.MAX)
    return bool(failed.item())
