"""Files that are whole or absent, and checkpoints that are loaded completely or refused."""

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
from d2kd.checkpoint.whole import whole_file

__all__ = [
    "UNTRAINED",
    "FittingCheckpointer",
    "Loaded",
    "Misfit",
    "MisfitError",
    "first_of",
    "load_strictly",
    "other_weights",
    "whole_file",
]
