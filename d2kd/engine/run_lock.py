"""One run a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d2kd.engine.defaults import ConfigError

__all__ = ["locked"]

logger = logging.getLogger(f"detectron2.{__name__}")


@contextmanager
def locked(output_dir: str) -> Iterator[None]:
    """
    Hold ``output_dir`` for one run, and no other process. The system frees it when the process ends, however it ends.
    Where its file system has no locks, this is logged and the run goes on.

    Args:
        output_dir: made if it is not there.

    Raises:
        ConfigError: it cannot be made or written.
        BlockingIOError: another process holds it; the message names that process.
    """
    path = Path(output_dir, "run.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        found = "is a file, expected a folder" if path.parent.is_file() else f"cannot be written ({error.strerror})"
        raise ConfigError(f"train.output_dir={output_dir} {found}: choose another.") from error
    with path.open("a+") as file:
        try:
            # A record lock, which the data workers of this process do not inherit: they may outlive it by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise BlockingIOError(
                f"train.output_dir={output_dir} is in use by another run ({file.read().strip() or 'unknown'}): "
                "wait for it, stop it, or choose another folder."
            ) from error
        except OSError as error:
            logger.warning("No other run is kept out of %s, whose file system has no locks: %s.", output_dir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
