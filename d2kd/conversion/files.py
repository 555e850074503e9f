"""Reading OpenMMLab's checkpoint without running its code, and writing Detectron2's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from d2kd.checkpoint import DamagedError, LayoutError, check_whole, first_of, save_whole, unsafe_names
from d2kd.checkpoint.layouts import check_start
from d2kd.conversion.errors import ConversionError

__all__ = ["check_output", "read_checkpoint", "write_checkpoint"]


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """
    The weights in an OpenMMLab checkpoint, its ``state_dict`` or the file itself where that is one, and what the file
    says of them, its ``meta``.

    Args:
        path: a file of torch.save.
        trust_pickle: run the file's pickle, which can execute any code. Classes of packages that are not installed
            (mmengine's logs beside the weights) are read as empty objects.

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: it is no checkpoint, or needs objects that only a trusted pickle may make.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        check_start(str(path))
        check_whole(path)
    except (DamagedError, LayoutError) as error:
        raise ConversionError(str(error)) from error
    try:
        if trust_pickle:
            content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_LENIENT_PICKLE)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(_refused(path, error)) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ConversionError(f"{path} is no checkpoint that torch.load reads ({type(error).__name__}).") from error
    if isinstance(content, Mapping) and "model" in content and "state_dict" not in content:
        raise ConversionError(
            f"{path} has its weights under 'model', as Detectron2 keeps them: it needs no conversion."
        )
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(
            f"{path} holds {_described(content)}, expected the weights of an OpenMMLab detector under 'state_dict'."
        )
    strange = [str(key) for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise ConversionError(f"{path}: these entries of its state_dict are no tensors: {', '.join(strange)}.")
    meta = content.get("meta") if state is not content else None
    return dict(state), meta if isinstance(meta, Mapping) else {}


def _described(content: Any) -> str:
    return f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"


def _refused(path: str | Path, error: pickle.UnpicklingError) -> str:
    names = unsafe_names(str(path), error)
    if not names:
        return f"{path} is no checkpoint that torch.load reads ({type(error).__name__})."
    return (
        f"{path} needs {first_of(names, 3)}, which is more than weights (files of MMDetection 3 carry their logs). "
        "Reading it runs code of the file: if you trust where it came from, add --trust-pickle."
    )


class _Absent:
    """Takes the place of a class that is not installed: accepts all that a pickle does to an object, keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _LenientUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Absent


#: What torch.load asks of a ``pickle_module``.
_LENIENT_PICKLE = SimpleNamespace(
    Unpickler=_LenientUnpickler,
    load=lambda file, **kwargs: _LenientUnpickler(file, **kwargs).load(),
    loads=pickle.loads,
    UnpicklingError=pickle.UnpicklingError,
    __name__="d2kd.conversion.files",
)


def check_output(path: str | Path, *, checkpoint: str | Path, force: bool = False) -> None:
    """
    Check the output's path before anything is read.

    Args:
        path: of the output.
        checkpoint: the input.
        force: an existing file may be replaced.

    Raises:
        ConversionError: the output is the input, a folder, or no .pth (Detectron2 reads .pkl and .pyth in other ways),
            or it exists and ``force`` is not set.
    """
    path = Path(path)
    if path.suffix != ".pth":
        raise ConversionError(f"The output is {path}, expected a name that ends in .pth: Detectron2 goes by it.")
    if path.exists() and os.path.exists(checkpoint) and os.path.samefile(path, checkpoint):
        raise ConversionError(f"The output {path} is the input: give it another name.")
    if path.is_dir():
        raise ConversionError(f"The output {path} is a folder, expected the name of a file.")
    if path.exists() and not force:
        raise ConversionError(f"The output {path} exists: add --force to replace it.")


def write_checkpoint(model: Mapping[str, Tensor], path: str | Path) -> None:
    """
    Write a checkpoint that Detectron2 loads by exact names; the file is there whole or not at all.

    Args:
        model: the detector's state dict.
        path: replaced if it exists; its folder is made.
    """
    # Without "matching_heuristics", with which Detectron2 would guess names that are exact already.
    save_whole({"model": dict(model), "__author__": "d2kd.conversion"}, path)
