"""Files that are whole or absent, and checkpoints that are loaded completely or refused."""

from d2kd.checkpoint.downloads import forget_download, local_path
from d2kd.checkpoint.layouts import LayoutError, check_finite, first_of
from d2kd.checkpoint.pickles import read_weights, unsafe_names
from d2kd.checkpoint.run import WholeCheckpointer, checkpoint_names
from d2kd.checkpoint.strict import (
    UNTRAINED,
    FittingCheckpointer,
    Loaded,
    Misfit,
    MisfitError,
    load_strictly,
    other_weights,
)
from d2kd.checkpoint.whole import DamagedError, check_whole, save_whole, whole_file

__all__ = [
    "UNTRAINED",
    "DamagedError",
    "FittingCheckpointer",
    "LayoutError",
    "Loaded",
    "Misfit",
    "MisfitError",
    "WholeCheckpointer",
    "check_finite",
    "check_whole",
    "checkpoint_names",
    "first_of",
    "forget_download",
    "load_strictly",
    "local_path",
    "other_weights",
    "read_weights",
    "save_whole",
    "unsafe_names",
    "whole_file",
]
