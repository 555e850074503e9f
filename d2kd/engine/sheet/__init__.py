"""The sheet of one image: labels, detections, and where a distilled training step acts on it."""

from d2kd.engine.sheet.boxes import RIGHT, WRONG, Box, draw_boxes, font, mark, place_label
from d2kd.engine.sheet.detections import LEAST_SCORE, make_sheet
from d2kd.engine.sheet.drawing import draw_sheet, save_sheets
from d2kd.engine.sheet.hook import SheetWriter, sheet_writers
from d2kd.engine.sheet.images import class_names, file_names, test_images
from d2kd.engine.sheet.step import Cells, HeatMap, StepView, look_at_step

__all__ = [
    "LEAST_SCORE",
    "RIGHT",
    "WRONG",
    "Box",
    "Cells",
    "HeatMap",
    "SheetWriter",
    "StepView",
    "class_names",
    "draw_boxes",
    "draw_sheet",
    "file_names",
    "font",
    "look_at_step",
    "make_sheet",
    "mark",
    "place_label",
    "save_sheets",
    "sheet_writers",
    "test_images",
]
