"""The subcommands of ``d2kd``, a module each; :mod:`d2kd.__main__` calls them, and so do the scripts in ``tools/``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

from omegaconf.errors import OmegaConfBaseException

__all__ = ["fail", "is_users_error", "run_command", "sentence"]

P = ParamSpec("P")


def fail(command: str, error: BaseException | str) -> int:
    """Print an error as one sentence that begins with the command's name; returns the exit status of a refusal."""
    print(f"{command}: {sentence(error)}", file=sys.stderr)
    return 2


def sentence(error: BaseException | str) -> str:
    """An error's message; of a KeyError without the quotes that Python adds."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def is_users_error(error: BaseException) -> bool:
    """
    Whether an error's message says all that its reader needs: it is about a file, a config's keys or a loss that is
    not finite, or d2kd itself raised it, or a node's arguments are not those of its target, or a dataset is not
    registered. A ValueError or TypeError from elsewhere may be a defect of a detector or of d2kd, and needs its
    traceback.
    """
    if isinstance(error, (OSError, OmegaConfBaseException, FloatingPointError)):
        return True
    if not isinstance(error, (ValueError, TypeError, ImportError, KeyError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package, module = (frame.f_globals.get(key) or "" for key in ("__package__", "__name__"))
    if isinstance(error, KeyError):
        return module == "detectron2.data.catalog"
    return package.partition(".")[0] == "d2kd" or module == "detectron2.config.instantiate"


def run_command(command: str, function: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
    """
    Call ``function``; a user's error or an interrupt ends it in one sentence. Returns the exit status: the function's
    (None: 0), 2 for an error, 130 for an interrupt, whose message says how to go on.
    """
    try:
        return function(*args, **kwargs) or 0
    except KeyboardInterrupt as error:
        print(f"\n{command}: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        if not is_users_error(error):
            raise
        return fail(command, error)
