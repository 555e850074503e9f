"""Whether a confusion of classes is another order of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["find_class_order"]


def find_class_order(votes: Tensor, columns: Sequence[int]) -> dict[int, int] | None:
    """
    Another assignment of the teacher's classes that explains what it names the objects, if there is one: a class that
    moves takes most objects of its new name, and the classes that move either change places among themselves, or take
    places that no class has, or are most of all objects. A teacher that calls trucks cars, and cars too, explains
    nothing: its classes stand where they should.

    Args:
        votes: (C, K) how many objects of each common class get the name of each of the teacher's classes.
        columns: for each common class the teacher's class that it is taken for at present.

    Returns:
        common class -> the teacher's class, for all common classes that have one then; None: no other order is better.
    """
    totals = votes.sum(1).tolist()
    best = votes.argmax(1).tolist()
    owner = {column: row for row, column in enumerate(columns)}
    moved = {
        row
        for row, total in enumerate(totals)
        if total >= 1
        and best[row] != columns[row]
        and votes[row, best[row]] >= 0.5 * total
        and votes[row, columns[row]] <= 0.25 * total
    }
    for column in {best[row] for row in moved}:  # one class a name
        rivals = sorted((row for row in moved if best[row] == column), key=lambda row: float(votes[row, column]))
        moved -= set(rivals[:-1])
    moved = _without_chains(moved, best, owner, totals)
    gained = sum(float(votes[row, best[row]] - votes[row, columns[row]]) for row in moved)
    counted = sum(float(votes[row, best[row]] + votes[row, columns[row]]) for row in moved)
    if not moved or gained < 3 * counted**0.5:  # three standard errors of a fair coin's
        return None
    order = {row: best[row] for row in moved}
    taken = set(order.values())
    order |= {row: column for row, column in enumerate(columns) if row not in moved and column not in taken}
    rows, free = set(range(len(columns))) - set(order), set(columns) - set(order.values())
    if len(rows) == len(free) == 1:  # the one class that is left
        order[rows.pop()] = free.pop()
    return dict(sorted(order.items()))


def _without_chains(moved: set[int], best: Sequence[int], owner: dict[int, int], totals: Sequence[float]) -> set[int]:
    """Those of ``moved`` whose new place is left by another that moves, or has no class; or that may be unseen."""

    def settle(rows: set[int], unseen_leave: bool) -> set[int]:
        while True:
            stays = {
                row
                for row in rows
                if best[row] in owner
                and owner[best[row]] not in rows
                and (totals[owner[best[row]]] or not unseen_leave)
            }
            if not stays:
                return rows
            rows = rows - stays

    loose = settle(moved, unseen_leave=True)
    if sum(totals[row] for row in loose) >= 0.5 * sum(totals):
        return loose
    return settle(moved, unseen_leave=False)
