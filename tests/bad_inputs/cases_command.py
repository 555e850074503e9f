"""Wrong commands and options."""

from __future__ import annotations

from tests.bad_inputs.case import BadInput

__all__ = ["CASES"]

CASES = [
    BadInput(
        "Command line",
        "a misspelt command",
        lambda folder: ["trian"],
        "d2kd: there is no command 'trian'; did you mean train?",
    ),
]
