"""Files that are whole or absent, and checkpoints that are loaded completely or refused."""

from d2kd.checkpoint.run import WholeCheckpointer, checkpoint_names
from d2kd.checkpoint.strict import (
    UNTRAINED,
    FittingCheckpointer,
    Loaded,
    Misfit,
    MisfitError,
    first_of,
    load_strictly,
    other_weights,
)
from d2kd.checkpoint.whole import DamagedError, check_whole, save_whole, whole_file

__all__ = [
    "UNTRAINED",
    "DamagedError",
    "FittingCheckpointer",
    "Loaded",
    "Misfit",
    "MisfitError",
    "WholeCheckpointer",
    "check_whole",
    "checkpoint_names",
    "first_of",
    "load_strictly",
    "other_weights",
    "save_whole",
    "whole_file",
]
