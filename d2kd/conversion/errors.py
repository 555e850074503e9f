"""The error for what a user can correct."""

from __future__ import annotations

__all__ = ["ConversionError"]


class ConversionError(ValueError):
    """A file or an option that does not convert; its message says what was found and needs no traceback."""
