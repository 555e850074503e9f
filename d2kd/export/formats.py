"""
The file formats of an exported student, and how a file of each is run.

ONNX files are written by torch's exporter for traced models, not by the one for exported programs. Both give the same
detections for batches and images of any size, and both are fast enough in onnxruntime. Tracing takes 0.7 s of
computing for the digits' students, the other way 16 s, of which most is algebra on symbolic sizes; it needs no
onnxscript, and works with every torch that d2kd does.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from d2kd.export.graph import DetectionGraph
from d2kd.export.weights import ExportError

__all__ = ["FORMATS", "OPSET", "OPSETS", "import_extra", "load_format", "open_session", "write_format"]

FORMATS = ("torchscript", "onnx", "exported_program")
#: ONNX operator sets: what torch's exporter writes, and the default, old enough for most engines.
OPSETS = range(13, 21)
OPSET = 17

_INPUT = "images"
_DIMENSIONS = {0: "batch", 2: "height", 3: "width"}

Runner = Callable[[Tensor], Sequence[Tensor]]


def import_extra(name: str) -> ModuleType:
    """
    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX files need {name}, which is not installed: pip install 'd2kd[export]'.") from error


def write_format(
    kind: str, graph: DetectionGraph, images: Tensor, path: Path, *, opset: int = OPSET, notes: Mapping[str, str]
) -> None:
    """
    Args:
        kind: one of :data:`FORMATS`.
        images: (N, C, H, W) to trace with; two for an exported program.
        path: written, whatever its name.
        opset: of ONNX, one of :data:`OPSETS`.
        notes: what an ONNX file says of itself.

    Raises:
        ExportError: the detector cannot be traced.
        OSError: the disk is full.
        ImportError: onnx is not installed.
    """
    writers: dict[str, Callable[..., None]] = {
        "torchscript": _write_torchscript,
        "onnx": _write_onnx,
        "exported_program": _write_program,
    }
    options = {"opset": opset, "notes": notes} if kind == "onnx" else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the comparisons show what it warns of
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript and its exporter are deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # in Detectron2's anchors
        try:
            writers[kind](graph, images, path, **options)
        except (ImportError, OSError):
            raise
        except Exception as error:  # the detector's own code can raise anything
            with open(path, "ab") as more:  # and torch does not say that the disk is full
                more.write(bytes(1 << 20))
            found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise ExportError(
                f"{type(graph.detector).__name__} cannot be traced, nothing was written: {found}"
            ) from error


def load_format(kind: str, path: Path, outputs: Sequence[str]) -> Runner:
    """What runs a file that :func:`write_format` wrote: (N, C, H, W) images -> its outputs."""
    if kind == "torchscript":
        return torch.jit.load(path)
    if kind == "exported_program":
        with open(path, "rb") as file:
            return torch.export.load(file).module()
    session = open_session(path)
    return lambda images: [torch.from_numpy(x) for x in session.run(list(outputs), {_INPUT: images.numpy()})]


def open_session(path: Path, threads: int | None = None) -> Any:
    """
    An onnxruntime ``InferenceSession`` on the CPU.

    Args:
        threads: of an operator; None: those of torch.

    Raises:
        ExportError: it is no ONNX file that onnxruntime can run.
        ImportError: onnxruntime is not installed.
        FileNotFoundError: there is no such file.
    """
    runtime = import_extra("onnxruntime")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, for each kind of damage
        reason = " ".join(str(error).split())
        raise ExportError(f"{path} is no ONNX file that onnxruntime can run: {reason}") from error


def _write_torchscript(graph: DetectionGraph, images: Tensor, path: Path) -> None:
    with open(path, "wb") as file:
        torch.jit.save(torch.jit.trace(graph, (images,), check_trace=False), file)


def _write_program(graph: DetectionGraph, images: Tensor, path: Path) -> None:
    program = torch.export.export(
        graph,
        (images,),
        dynamic_shapes={_INPUT: {axis: Dim.DYNAMIC for axis in _DIMENSIONS}},
        strict=False,
        # That the maps of an FPN fit each other is checked when it runs.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    with open(path, "wb") as file:
        torch.export.save(program, file)


def _write_onnx(graph: DetectionGraph, images: Tensor, path: Path, *, opset: int, notes: Mapping[str, str]) -> None:
    onnx = import_extra("onnx")
    shapes = [["batch", *map(int, x.shape[1:])] for x in graph(images)]
    if graph.locations:
        for shape in shapes:
            shape[1] = "locations"
    torch.onnx.export(
        graph,
        (images,),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=[_INPUT],
        output_names=list(graph.outputs),
        dynamic_axes={_INPUT: _DIMENSIONS, **{name: {0: "batch"} for name in graph.outputs}},
    )
    model = onnx.load(str(path))
    for output, shape in zip(model.graph.output, shapes, strict=True):  # torch knows the batch alone
        for dimension, size in zip(output.type.tensor_type.shape.dim, shape, strict=True):
            dimension.Clear()
            setattr(dimension, "dim_param" if isinstance(size, str) else "dim_value", size)
    onnx.helper.set_model_props(model, dict(notes))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
