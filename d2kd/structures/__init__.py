"""What walks from detectors to losses. Torch only; every other package may read this one, it reads none."""

from d2kd.structures.assignment import Assignment
from d2kd.structures.boxes import (
    box_areas,
    box_centers,
    image_chunks,
    intersection,
    iou,
    object_chunks,
    squared_distance,
)
from d2kd.structures.dense_output import DenseOutput, OutputSpec
from d2kd.structures.devices import kept_random_state, whole_numbers

__all__ = [
    "Assignment",
    "DenseOutput",
    "OutputSpec",
    "box_areas",
    "box_centers",
    "image_chunks",
    "intersection",
    "iou",
    "kept_random_state",
    "object_chunks",
    "squared_distance",
    "whole_numbers",
]
