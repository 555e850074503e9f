"""
OpenMMLab's checkpoints of the papers' detectors become Detectron2 checkpoints of the model nodes in
``configs/common/models``: the same boxes and scores from the same images.
"""

from d2kd.conversion.errors import ConversionError
from d2kd.conversion.families import FAMILIES, STYLES
from d2kd.conversion.files import check_output, read_state, write_checkpoint
from d2kd.conversion.placement import Conversion, convert
from d2kd.conversion.report import summary

__all__ = [
    "FAMILIES",
    "STYLES",
    "Conversion",
    "ConversionError",
    "check_output",
    "convert",
    "read_state",
    "summary",
    "write_checkpoint",
]
