"""The subcommands of ``d2kd``, a module each; :mod:`d2kd.__main__` calls them, and so do the scripts in ``tools/``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

from omegaconf.errors import OmegaConfBaseException

__all__ = ["fail", "is_users_error", "run_command"]

P = ParamSpec("P")


def fail(command: str, error: Exception | str) -> int:
    """Print an error as one sentence that begins with the command's name; returns the exit status."""
    print(f"{command}: {error}", file=sys.stderr)
    return 1


def is_users_error(error: BaseException) -> bool:
    """
    Whether an error's message says all that its reader needs: it is about a file or a config's keys, or d2kd itself
    raised it, or a node's arguments are not those of its target. A ValueError or TypeError from elsewhere may be a
    defect of a detector or of d2kd, and needs its traceback.
    """
    if isinstance(error, (OSError, OmegaConfBaseException)):
        return True
    if not isinstance(error, (ValueError, TypeError, FloatingPointError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package, module = (frame.f_globals.get(key) or "" for key in ("__package__", "__name__"))
    return package.partition(".")[0] == "d2kd" or module == "detectron2.config.instantiate"


def run_command(command: str, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> int:
    """Call ``function``; a user's error ends it in one sentence. Returns the exit status."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        if not is_users_error(error):
            raise
        return fail(command, error)
    return 0
