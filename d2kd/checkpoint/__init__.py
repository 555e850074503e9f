"""Files that are whole or absent, and checkpoints that are loaded completely or refused."""

from d2kd.checkpoint.downloads import forget_download
from d2kd.checkpoint.layouts import LayoutError
from d2kd.checkpoint.pickles import unsafe_names
from d2kd.checkpoint.run import WholeCheckpointer, checkpoint_names
from d2kd.checkpoint.strict import Loaded, MisfitError, load_strictly
from d2kd.checkpoint.whole import DamagedError, check_whole, save_whole, whole_file

__all__ = [
    "DamagedError",
    "LayoutError",
    "Loaded",
    "MisfitError",
    "WholeCheckpointer",
    "check_whole",
    "checkpoint_names",
    "forget_download",
    "load_strictly",
    "save_whole",
    "unsafe_names",
    "whole_file",
]
