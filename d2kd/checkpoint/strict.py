"""Loading a checkpoint completely or saying what is missing; Detectron2's checkpointer only logs what did not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from d2kd.checkpoint.downloads import local_path
from d2kd.checkpoint.layouts import LayoutError, check_finite, first_of, other_layout
from d2kd.checkpoint.run import WholeCheckpointer
from d2kd.checkpoint.whole import DamagedError

__all__ = [
    "UNTRAINED",
    "FittingCheckpointer",
    "Loaded",
    "Misfit",
    "MisfitError",
    "load_strictly",
    "other_weights",
]

#: Keys that a checkpoint may lack or have in excess: they hold nothing of a detector that was trained.
UNTRAINED = re.compile(r"(^|\.)(pixel_(mean|std)|num_batches_tracked|cell_anchors\.\d+)$|^distillation\.")


class MisfitError(ValueError):
    """A checkpoint with missing, unexpected or mismatched keys; its message lists them."""


@dataclass
class Misfit:
    """
    What of a checkpoint and a model did not fit.

    Attributes:
        missing: keys of the model that the checkpoint lacks.
        unexpected: keys of the checkpoint that the model lacks.
        mismatched: keys of both, with the two shapes.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        found = {"missing": self.missing, "unexpected": self.unexpected, "shape mismatch": self.mismatched}
        return "; ".join(f"{kind}, {len(keys)}: {first_of(keys, 3)}" for kind, keys in found.items() if keys)


@dataclass
class Loaded:
    """
    What a checkpoint holds beside the weights that were loaded.

    Attributes:
        ignored: what of its model was left over and does no harm, by its keys.
        misfit: what else did not fit.
        rest: its other entries, such as the optimizer's.
    """

    ignored: dict[str, Any] = field(default_factory=dict)
    misfit: Misfit = field(default_factory=Misfit)
    rest: dict[str, Any] = field(default_factory=dict)


class FittingCheckpointer(WholeCheckpointer):
    """
    A checkpointer that reads whole files alone, and hands on what did not fit.

    Args:
        model, save_dir, checkpointables: see Detectron2's.
        on_load: called after the model's weights were loaded, before anything else is.
        harmless: keys that may be missing or left over; they hold nothing that was trained.
        entry: which of the file's entries are the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        on_load: Callable[[Misfit], None],
        harmless: re.Pattern[str] = UNTRAINED,
        entry: str = "model",
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._on_load = on_load
        self._harmless = harmless
        self._entry = entry
        self.ignored: dict[str, Any] = {}

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._entry != "model" and filename.endswith((".pkl", ".pyth")):
            raise ValueError(f"{filename} has one set of weights, not {self._entry!r} (model.teacher.weights).")
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        loaded = super()._torch_load(f)
        return loaded if self._entry == "model" else {**loaded, "model": _weights_of(loaded, self._entry, f)}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        given = checkpoint["model"]  # which Detectron2 takes out
        incompatible = super()._load_model(checkpoint)
        self.ignored = {k: given.get(k) for k in incompatible.unexpected_keys if self._harmless.search(k)}
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:  # fvcore's type of it is private
        mismatched = {k for k, _, _ in incompatible.incorrect_shapes}
        self._on_load(
            Misfit(
                [k for k in incompatible.missing_keys if k not in mismatched and not self._harmless.search(k)],
                [k for k in incompatible.unexpected_keys if k not in self.ignored],
                [f"{k} (checkpoint {tuple(a)}, model {tuple(b)})" for k, a, b in incompatible.incorrect_shapes],
            )
        )


def load_strictly(
    model: nn.Module,
    checkpoint: str,
    *,
    refusal: str,
    absent: str,
    harmless: re.Pattern[str] = UNTRAINED,
    entry: str = "model",
    allow_partial: bool = False,
    key: str = "",
    way_out: str = "",
) -> Loaded:
    """
    Load ``checkpoint`` through ``DetectionCheckpointer``, refusing all but a complete load.

    Args:
        model: the weights go there.
        checkpoint: path or URL that Detectron2 can read.
        refusal: the error's sentence if keys are missing, unexpected or of another shape; the keys follow it.
        absent: the error's sentence if there is no such file.
        harmless: keys that may be missing or left over.
        entry: which of the file's entries are the weights; see :func:`other_weights`.
        allow_partial: return what did not fit instead of raising.
        key: where the checkpoint was given, for the sentence about a file that is something else; "": as an argument.
        way_out: the end of the sentence about a checkpoint that does not fit, e.g. the option of ``allow_partial``.

    Raises:
        DamagedError, LayoutError: see :class:`WholeCheckpointer`; or it is a checkpoint of something else,
            or weights are not finite.
        MisfitError: the checkpoint does not fit; ``model`` may hold some of its weights.
        ValueError: it has no such ``entry``.
        FileNotFoundError: there is no such file, or a URL does not answer.
    """
    loaded = Loaded()
    otherwise = f"; {way_out}" if way_out else ""

    def on_load(misfit: Misfit) -> None:
        loaded.misfit = misfit
        if not misfit or allow_partial:
            return
        left = [*misfit.unexpected, *checkpointer.ignored]
        if what := other_layout(checkpoint, model, misfit.missing, left, misfit.mismatched):
            raise LayoutError(f"{checkpoint} is {what}{otherwise}.")
        raise MisfitError(f"{refusal}: {misfit}{otherwise}.")

    checkpointer = FittingCheckpointer(model, on_load=on_load, harmless=harmless, entry=entry)
    try:
        if not os.path.isfile(local_path(checkpoint)):
            raise FileNotFoundError
        loaded.rest = checkpointer.load(checkpoint)
        check_finite(model, checkpoint)
    except (DamagedError, LayoutError, FileNotFoundError) as error:
        sentence = f"{key}: {error}" if key else str(error)
        raise type(error)(sentence if error.args else absent) from error
    loaded.ignored = checkpointer.ignored
    return loaded


def other_weights(rest: Mapping[str, Any]) -> list[str]:
    """The entries beside a checkpoint's "model" that hold averages of its weights (EMA), by their names."""
    return [name for name, value in rest.items() if "ema" in name.lower().split("_") and _tensors_of(value)]


def _weights_of(loaded: Mapping[str, Any], entry: str, file: str) -> dict[str, Any]:
    weights = _tensors_of(loaded.get(entry))
    if weights is None:
        found = [name for name, value in loaded.items() if _tensors_of(value)]
        raise ValueError(
            f"{file} has no weights {entry!r}, only {', '.join(map(repr, found)) or 'none'}: change "
            "model.teacher.weights (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS_ENTRY)."
        )
    # What torch's AveragedModel counts.
    return {key: value for key, value in weights.items() if key != "n_averaged"}


def _tensors_of(value: object) -> dict[str, Any] | None:
    """A state dict, or the one inside of what holds it with other things; None: there is none."""
    if not isinstance(value, Mapping) or not value:
        return None
    if all(isinstance(x, torch.Tensor) for x in value.values()):
        return dict(value)
    inside = [value[name] for name in ("state_dict", "model", "module", "shadow") if name in value]
    return _tensors_of(inside[0]) if inside else None
