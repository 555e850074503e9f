"""The public data sets: what they are, where they come from, and what a copy of one has to hold."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SETS", "SPLITS", "PublicSet"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PublicSet:
    """
    One data set.

    Attributes:
        name: of its folder, and of its splits: ``NAME_train``, ``NAME_val``, ``NAME_test``.
        classes: in the order of the category ids, which begin with 1.
    """

    name: str
    classes: tuple[str, ...]


SETS: dict[str, PublicSet] = {
    each.name: each
    for each in (
        PublicSet(name="cards", classes=("nine", "ten", "jack", "queen", "king", "ace")),
        PublicSet(name="aquarium", classes=("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")),
        PublicSet(name="bccd", classes=("RBC", "WBC", "Platelets")),
    )
}
