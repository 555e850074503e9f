"""
OpenMMLab's checkpoints of the papers' detectors become Detectron2 checkpoints of the model nodes in
``configs/common/models``: the same boxes and scores from the same images.
"""

from d2kd.conversion.errors import ConversionError
from d2kd.conversion.families import FAMILIES, STYLES
from d2kd.conversion.files import check_output, read_checkpoint, write_checkpoint
from d2kd.conversion.placement import Conversion, convert
from d2kd.conversion.report import summary
from d2kd.conversion.stated import Anchors, Stated, read_stated

__all__ = [
    "FAMILIES",
    "STYLES",
    "Anchors",
    "Conversion",
    "ConversionError",
    "Stated",
    "check_output",
    "convert",
    "read_checkpoint",
    "read_stated",
    "summary",
    "write_checkpoint",
]
