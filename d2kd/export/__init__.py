"""Exporting the student of a run: its weights alone, or a file that detects the same without d2kd."""

from d2kd.export.comparison import Comparison, compare, random_image
from d2kd.export.files import Proof, random_images, write_file, write_int8
from d2kd.export.formats import FORMATS, OPSET, OPSETS
from d2kd.export.graph import DETECTIONS, LOCATIONS, DetectionGraph
from d2kd.export.onnx_model import OnnxDetector
from d2kd.export.samples import images_of_files, test_images, train_images
from d2kd.export.weights import ExportError, LoadedStudent, load_student, load_yacs_student, write_weights

__all__ = [
    "DETECTIONS",
    "FORMATS",
    "LOCATIONS",
    "OPSET",
    "OPSETS",
    "Comparison",
    "DetectionGraph",
    "ExportError",
    "LoadedStudent",
    "OnnxDetector",
    "Proof",
    "compare",
    "images_of_files",
    "load_student",
    "load_yacs_student",
    "random_image",
    "random_images",
    "test_images",
    "train_images",
    "write_file",
    "write_int8",
    "write_weights",
]
