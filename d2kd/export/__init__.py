"""Exporting the student of a run: its weights alone, and a traced model that detects the same."""

from d2kd.export.torchscript import OUTPUTS, Comparison, Proof, compare, random_image, write_torchscript
from d2kd.export.weights import ExportError, LoadedStudent, load_student, write_weights

__all__ = [
    "OUTPUTS",
    "Comparison",
    "ExportError",
    "LoadedStudent",
    "Proof",
    "compare",
    "load_student",
    "random_image",
    "write_torchscript",
    "write_weights",
]
