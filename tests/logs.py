"""Loggers, which a command sets up for its process and a test must leave as they were. Needs no Detectron2."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["logs_of_its_own"]


def _settings() -> dict[str, tuple[int, bool, list[logging.Handler], list[logging.Filter]]]:
    """Logger -> level, whether it propagates, handlers and filters; of loggers, not of placeholders."""
    found = logging.root.manager.loggerDict.items()
    loggers = ((name, logger) for name, logger in found if isinstance(logger, logging.Logger))
    return {name: (log.level, log.propagate, log.handlers[:], log.filters[:]) for name, log in loggers}


@contextmanager
def logs_of_its_own() -> Iterator[None]:
    """Whatever is done to loggers inside is undone."""
    before = _settings()
    try:
        yield
    finally:
        for name in _settings():
            level, propagate, handlers, filters = before.get(name, (logging.NOTSET, True, [], []))
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.propagate, logger.handlers[:], logger.filters[:] = propagate, handlers, filters
        if detectron2 := sys.modules.get("detectron2.utils.logger"):
            detectron2.setup_logger.cache_clear()  # it sets up a name once
