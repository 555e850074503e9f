"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, and the run ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from d2kd.engine.ranks import names_the_wait
from d2kd.modeling.distillation.agreement import on_any_rank

__all__ = ["SAME_SIGNAL_SECONDS", "StopOnSignal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: After a signal another is the same one for as long: a launcher hands on what the whole group has got.
SAME_SIGNAL_SECONDS = 3.0


class StopOnSignal(HookBase):
    """
    After the first Ctrl-C or SIGTERM the step is finished, a checkpoint written and :class:`KeyboardInterrupt` raised,
    on all ranks, also if one alone got the signal; an evaluation is left at once, as the training before it is not
    lost. A signal some seconds later does what it did before training. Register it on every rank, before hooks that
    take long.

    Args:
        checkpointer: of the run; writes on the main rank.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._received: float | None = None  # when, by time.monotonic()
        self._evaluating = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def after_step(self) -> None:
        if on_any_rank(self._received is not None):
            self._save()
            comm.synchronize()  # a launcher ends the other ranks as soon as one has left
            raise KeyboardInterrupt(self._sentence())

    def after_train(self) -> None:
        self._restore()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation: a signal ends it at once. Whatever ends it, the training before it is saved."""
        self._evaluating = True
        try:
            with names_the_wait("an evaluation"):
                yield
        except BaseException as error:
            self._evaluating = False
            self._save()
            # A worker that got the signal as well, or a rank that has left, may have raised something else.
            if self._received is not None or isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(self._sentence()) from None
            raise
        finally:
            self._evaluating = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is not None:
            if now - self._received > SAME_SIGNAL_SECONDS:
                self._restore()
                signal.raise_signal(number)
            return
        self._received = now
        if self._evaluating:
            raise KeyboardInterrupt
        # Not by a logger or print(), which may be in the middle of a line.
        os.write(2, b"\nFinishing this step, then writing a checkpoint. Once more, 3 seconds later: stop at once.\n")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _save(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # else the last step's checkpoint was written
            self._checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)

    def _sentence(self) -> str:
        return f"Iteration {self.trainer.iter} is saved: --resume goes on from there."
