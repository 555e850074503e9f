"""What the commands do; ``tools/`` has a door to each."""

import sys

__all__ = ["fail"]


def fail(command: str, error: Exception | str) -> int:
    """Say an error as the command's one sentence; returns the exit status."""
    print(f"{command}: {error}", file=sys.stderr)
    return 1
