"""The commands; ``tools/`` has a script for each."""

import sys

__all__ = ["fail"]


def fail(command: str, error: Exception | str) -> int:
    """Print an error as one sentence that begins with the command's name; returns the exit status."""
    print(f"{command}: {error}", file=sys.stderr)
    return 1
