"""Pickles: what they would call when they are read, and a check that it is nothing but arrays."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from typing import IO, Any

import torch

from d2kd.checkpoint.layouts import LayoutError, named_by_objects
from d2kd.checkpoint.whole import DamagedError

__all__ = ["check_arrays", "read_weights", "unsafe_names"]

#: What a pickle of dicts of arrays and tensors calls: (module, name).
_ARRAYS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")),
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")),
    ("torch.storage", "_load_from_bytes"),
}


def read_weights(path: str) -> Mapping[str, Any]:
    """
    ``torch.load`` of weights and plain values alone.

    Raises:
        LayoutError: the file holds something else, or names what may run code.
        DamagedError: it is damaged, or no file of torch.save.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _unread(path, error) from error
    if not isinstance(content, Mapping):
        raise LayoutError(f"{path} holds a {type(content).__name__}, expected a mapping of names to weights.")
    return content


def check_arrays(path: str) -> None:
    """
    Read a pickle, such as a Detectron2 ``.pkl``, calling nothing but what makes arrays and tensors.

    Raises:
        LayoutError: it would call something else.
        DamagedError: it is damaged.
    """
    with open(path, "rb") as file:
        try:
            _Arrays(file, path).load()
        except (LayoutError, OSError):
            raise
        except Exception as error:
            raise _unread(path, error) from error


class _Arrays(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: str) -> None:
        super().__init__(file, encoding="latin1")  # as Detectron2 reads it
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise LayoutError(
                f"{self.path} is a pickle that calls {module}.{name}, expected one of arrays alone: if you trust it, "
                "read it with pickle.load and write its weights with torch.save to a .pth."
            )
        return _storage if name == "_load_from_bytes" else super().find_class(module, name)


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _unread(path: str, error: Exception) -> ValueError:
    if names := unsafe_names(path, error):
        return LayoutError(named_by_objects(path, names))
    return DamagedError(f"{path} is damaged, or no checkpoint ({type(error).__name__}).")


def unsafe_names(path: str, error: Exception) -> list[str]:
    """
    What a file of ``torch.save`` names that is no part of weights.

    Args:
        path: the file.
        error: of ``torch.load(path, weights_only=True)``.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # no archive, or a damaged one; before torch 1.6 no archives were written
        return list(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", str(error))))
