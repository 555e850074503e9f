"""Loading a checkpoint completely or not at all; Detectron2's checkpointer only logs what did not fit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from torch import nn

from d2kd.checkpoint.layouts import LayoutError, check_finite, other_layout
from d2kd.checkpoint.run import WholeCheckpointer
from d2kd.checkpoint.whole import DamagedError

__all__ = ["Loaded", "MisfitError", "load_strictly"]


class MisfitError(ValueError):
    """A checkpoint with missing, unexpected or mismatched keys; its message lists them."""


@dataclass
class Loaded:
    """
    What a checkpoint holds beside the weights that were loaded.

    Attributes:
        ignored: keys of its model that were left over.
        rest: its other entries, such as the optimizer's.
    """

    ignored: list[str] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)


class _StrictCheckpointer(WholeCheckpointer):
    """Raises on anything but a complete load."""

    def __init__(self, model: nn.Module, checkpoint: str, *, refusal: str, harmless: re.Pattern[str]) -> None:
        super().__init__(model)
        self._checkpoint = checkpoint
        self._refusal = refusal
        self._harmless = harmless
        self.ignored: list[str] = []

    def _log_incompatible_keys(self, incompatible: Any) -> None:  # fvcore's type of it is private
        mismatched = {k for k, _, _ in incompatible.incorrect_shapes}
        self.ignored = [k for k in incompatible.unexpected_keys if self._harmless.search(k)]
        found = {
            "missing": [k for k in incompatible.missing_keys if k not in mismatched and not self._harmless.search(k)],
            "unexpected": [k for k in incompatible.unexpected_keys if k not in self.ignored],
            "shape mismatch": [
                f"{k} (checkpoint {tuple(a)}, model {tuple(b)})" for k, a, b in incompatible.incorrect_shapes
            ],
        }
        if any(found.values()):
            what = other_layout(
                self._checkpoint,
                self.model,
                found["missing"],
                incompatible.unexpected_keys,
                found["shape mismatch"],
            )
            if what:
                raise LayoutError(f"{self._checkpoint} is {what}.")
            lines = [f"  {kind}, {len(keys)}: {', '.join(keys)}" for kind, keys in found.items() if keys]
            raise MisfitError(f"{self._refusal}:\n" + "\n".join(lines))


def load_strictly(
    model: nn.Module, checkpoint: str, *, refusal: str, absent: str, harmless: re.Pattern[str], key: str = ""
) -> Loaded:
    """
    Load ``checkpoint`` through ``DetectionCheckpointer``, refusing all but a complete load.

    Args:
        model: the weights go there.
        checkpoint: path or URL that Detectron2 can read.
        refusal: the error's sentence if keys are missing, unexpected or of another shape; the keys follow it.
        absent: the error's sentence if there is no such file.
        harmless: keys that may be missing or left over.
        key: where the checkpoint was given, for the sentence about a file that is something else; "": as an argument.

    Raises:
        DamagedError, LayoutError: see :class:`WholeCheckpointer`; or it is a checkpoint of something else,
            or weights are not finite.
        MisfitError: the checkpoint does not fit; ``model`` may hold some of its weights.
        FileNotFoundError: there is no such file.
    """
    checkpointer = _StrictCheckpointer(model, checkpoint, refusal=refusal, harmless=harmless)
    # A path with a query, such as "x.pkl?matching_heuristics=True", is Detectron2's own grammar.
    path = urlparse(checkpoint)._replace(query="").geturl()
    try:
        found = os.path.isfile(checkpointer.path_manager.get_local_path(path))
    except OSError as error:  # of a URL
        raise FileNotFoundError(f"{absent} ({error})") from error
    if not found:
        raise FileNotFoundError(absent)
    try:
        rest = checkpointer.load(checkpoint)
        check_finite(model, checkpoint)
    except (DamagedError, LayoutError) as error:
        raise type(error)(f"{key}: {error}" if key else str(error)) from error
    return Loaded(checkpointer.ignored, rest)
