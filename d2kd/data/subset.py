"""A random share of a dataset, or the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np

__all__ = ["subset"]


def subset(dataset: Sequence[dict], share: float, seed: int = 0, rest: bool = False) -> list[dict]:
    """
    A random share of a dataset's images, or all others; for learning curves, and for few labels with more images::

        dataloader.train.dataset = L(subset)(dataset=L(get_public_data)(names="cards_train"), share=0.33)
        dataloader.train.unlabeled = L(subset)(dataset=L(get_public_data)(names="cards_train"), share=0.33, rest=True)

    A smaller share of the same seed is part of a larger one. The choice depends on the number of images, their order
    and the seed only: it is the same in every process, on every machine.

    Args:
        dataset: Detectron2's dataset dicts; not changed.
        share: of the images, over 0 and at most 1.
        seed: another seed, another choice.
        rest: the images that are not in the share.

    Returns:
        The dataset dicts, in the dataset's order.

    Raises:
        ValueError: ``share`` is outside its range, or no image would be left.
    """
    if not (isinstance(share, Real) and 0 < share <= 1):
        raise ValueError(f"subset(share={share!r}): expected a number over 0 and at most 1.")
    count = round(share * len(dataset))
    # RandomState's stream is frozen: other generators of numpy or torch may change between versions.
    order = np.random.RandomState(seed).permutation(len(dataset))
    chosen = sorted(order[count:] if rest else order[:count])
    if not chosen:
        raise ValueError(f"subset(share={share}, rest={rest}) of {len(dataset)} images leaves none.")
    return [dataset[index] for index in chosen]
