"""metrics.json of a run that is continued: each iteration once, no line cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2kd.checkpoint import whole_file

__all__ = ["cut_metrics", "was_logged"]


def cut_metrics(path: Path, start_iter: int, *, evaluated_again: bool) -> None:
    """
    Take out of a run's metrics what it will write again: the iterations from ``start_iter`` on.

    Args:
        path: ``metrics.json``, one JSON object a line; a line that was cut off when the run died is dropped. Nothing
            happens if it does not exist.
        start_iter: the first iteration to come.
        evaluated_again: the run was finished, and will write its last evaluation again; else what it wrote of that
            after its last step is now of that step.
    """
    if not path.is_file():
        return
    records: dict[int, dict[str, Any]] = {}
    for iteration, record in _records(path):
        if iteration == start_iter and "total_loss" not in record and not evaluated_again:
            iteration -= 1
        if iteration < start_iter:
            records[iteration] = {**records.get(iteration, {}), **record, "iteration": iteration}
    with whole_file(path) as partial:
        partial.write_text("".join(json.dumps(record, sort_keys=True) + "\n" for record in records.values()))


def was_logged(path: Path, iteration: int, name: str) -> bool:
    """Whether ``metrics.json`` is there and has the scalar ``name`` at ``iteration``."""
    return path.is_file() and any(i == iteration and name in record for i, record in _records(path))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            iteration = record["iteration"]
        except (ValueError, TypeError, KeyError):
            continue
        yield iteration, record
