"""The subcommands of ``d2kd``, a module each; :mod:`d2kd.__main__` calls them, and so do the scripts in ``tools/``."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf.errors import OmegaConfBaseException

__all__ = [
    "Parser",
    "check_file",
    "check_folder",
    "fail",
    "is_users_error",
    "run_command",
    "sentence",
    "without_overrides",
]


class Parser(argparse.ArgumentParser):
    """
    The parser of a command: texts are shown as they are written, ``--traceback`` is an option, and a wrong option is
    refused in one line. The arguments are those of ``argparse.ArgumentParser``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})
        self.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,  # else a subcommand's parser would overwrite what its parent found
            help="show Python's traceback before the line of a refusal",
        )

    def error(self, message: str) -> NoReturn:
        # Versions of Python quote the choices differently.
        if choice := re.fullmatch(r"(.*): invalid choice: (.*) \(choose from (.*)\)", message):
            message = f"{choice[1]}: {choice[2]} is none of {choice[3]}".replace("'", "")
        if number := re.fullmatch(r"(.*): invalid int value: '(.*)'", message):
            message = f"{number[1]}: {number[2]} is no whole number"
        self.exit(2, f"{self.prog}: {message.rstrip('.')} ({self.prog} --help).\n")


def without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and overrides (``key=value`` that is no file's name) out of what people type in any order."""
    overrides = [word for word in words if "=" in word and not os.path.exists(word)]
    return [word for word in words if word not in overrides], overrides


def check_file(option: str, path: Path | None) -> None:
    """
    Check the name of a file that will be written, before anything is computed.

    Raises:
        ValueError: it is a folder's.
    """
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path} is a folder, expected the name of a file.")


def check_folder(option: str, path: Path) -> None:
    """
    Check the name of a folder that will be made or filled, before anything is computed.

    Raises:
        ValueError: it is a file's.
    """
    if path.is_file():
        raise ValueError(f"{option} {path} is a file, expected the name of a folder.")


def fail(command: str, error: BaseException | str, trace: str = "") -> int:
    """
    Print an error as one line that begins with the command's name, after its traceback if there is one to show; returns
    the exit status of a refusal.
    """
    print(f"{trace}{command}: {sentence(error)}", file=sys.stderr)
    return 2


def sentence(error: BaseException | str) -> str:
    """
    An error's message in one line; of a KeyError without the quotes that Python adds, of a file its name and what is
    wrong, of omegaconf's the key and the first line.
    """
    if isinstance(error, OmegaConfBaseException):
        text = str(error).partition("\n")[0] if error.full_key else str(error)
        if moved := re.fullmatch(r"Interpolation key 'model\.(?!student\.|teacher\.)(\S+)' not found", text):
            text += f"; of a distilled model it is ${{model.student.{moved[1]}}}."
        return f"{error.full_key}: {text}" if error.full_key else text
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    lines = str(error.args[0] if isinstance(error, KeyError) and error.args else error).splitlines()
    return re.sub(r"([.:;]?)\s*\n\s*", lambda end: f"{end[1] or ';'} ", "\n".join(lines).strip())


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


def run_command(command: str, function: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """
    Call ``function`` with ``args``, which a :class:`Parser` made; a user's error or an interrupt ends it in one line.
    Returns the exit status: the function's (None: 0), 2 for an error, 130 for an interrupt, whose message says how to
    go on.
    """
    # It logs which class refused its arguments, which the sentence says, too.
    logging.getLogger("detectron2.config.instantiate").setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have bytes or letters that it cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return function(args) or 0
    except KeyboardInterrupt as error:
        print(f"\n{command}: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        if not is_users_error(error):
            raise
        return fail(command, error, "".join(traceback.format_exception(error)) if "traceback" in args else "")
