"""Files that are whole or absent, and checkpoints that are loaded completely or refused."""

from d2kd.checkpoint.strict import Loaded, MisfitError, load_strictly
from d2kd.checkpoint.whole import whole_file

__all__ = ["Loaded", "MisfitError", "load_strictly", "whole_file"]
