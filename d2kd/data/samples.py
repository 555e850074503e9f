"""Sample n of a run as a function of the seed and n alone."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils import data as torchdata

from d2kd.data.mapping import SampleError, map_entry

__all__ = ["UNLABELED", "WORKERS", "MixedSamples", "RunSampler", "RunSamples", "derive_seed", "isolated_rng"]

logger = logging.getLogger(f"detectron2.{__name__}")

#: How many entries in a row may be skipped.
_SKIPPED_IN_A_ROW = 10

# First element of the key given to derive_seed(): independent streams of random numbers.
_PERMUTATION, _SAMPLE, WORKERS, UNLABELED = range(4)


def derive_seed(seed: int, *key: int) -> int:
    """
    A 63-bit seed for the stream ``key`` of a run seeded with ``seed``; all integers are >= 0. Neighbouring seeds and
    keys give unrelated results, the same on every platform (:class:`numpy.random.SeedSequence`).
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """
    Seed the CPU generators that data mappers draw from (``random``, ``numpy.random``, ``torch``), and restore their
    states on exit. CUDA generators are not touched.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Not torch.manual_seed, which would seed the CUDA generators too.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class RunSamples(torchdata.Dataset):
    """
    Sample n of a run: map-style over n = 0, 1, 2, ... without end.

    Args:
        batch_size: how many successive samples should be all wide or all not; 0: none.
        on_error: "raise", or "skip": an entry that the mapper cannot read gives way to the one after it in the dataset.
        key: which argument of :func:`build_train_loader` the dataset is, for messages.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper: Callable[[dict], Any],
        seed: int,
        *,
        batch_size: int,
        on_error: str,
        key: str = "dataset",
    ) -> None:
        self._wide = _are_wide(dataset, key) if batch_size else []
        self._batch_size = batch_size
        self._dataset = DatasetFromList(dataset, copy=False)
        self._mapper = mapper
        self._seed = seed
        self._skips = on_error == "skip"
        self._skipped = 0
        self._key = key
        self._epoch = -1
        self._permutation: list[int] = []

    def _index(self, n: int) -> int:
        epoch, position = divmod(n, len(self._dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, _PERMUTATION, epoch))
            permutation = torch.randperm(len(self._dataset), generator=generator).tolist()
            self._permutation = self._grouped(permutation, epoch) if self._batch_size else permutation
            self._epoch = epoch
        return self._permutation[position]

    def _grouped(self, permutation: list[int], epoch: int) -> list[int]:
        # The first samples complete a batch that the epoch before has begun.
        begun = -epoch * len(permutation) % self._batch_size
        grouped = permutation[:begun]
        groups: tuple[list[int], list[int]] = ([], [])
        for index in permutation[begun:]:
            group = groups[self._wide[index]]
            group.append(index)
            if len(group) == self._batch_size:
                grouped += group
                group.clear()
        return grouped + groups[0] + groups[1]

    def __getitem__(self, n: int) -> Any:
        first = self._index(n)
        for index in range(first, first + _SKIPPED_IN_A_ROW):
            try:
                return self._sample(index % len(self._dataset), n)
            except SampleError as error:
                if not self._skips:
                    raise
                self._skipped += 1
                logger.warning(
                    "Skipped, %d so far in this process (dataloader.train.on_error): %s", self._skipped, error
                )
        raise SampleError(
            f"{_SKIPPED_IN_A_ROW} entries of dataloader.train.{self._key} in a row cannot be read, beginning with "
            f"entry {first}: see the warnings before."
        )

    def _sample(self, index: int, n: int) -> Any:
        item = self._dataset[index]
        entry = f"entry {index} of dataloader.train.{self._key} ({item.get('file_name', 'without a file_name')})"
        advice = "correct the entry, leave it out, or set dataloader.train.on_error=skip"
        with isolated_rng(derive_seed(self._seed, _SAMPLE, n)):
            sample = map_entry(self._mapper, item, "dataloader.train.mapper", entry, advice)
        if sample is None:
            # Detectron2's MapDataset would draw another image from a generator whose state cannot be resumed.
            raise SampleError(
                f"dataloader.train.mapper returned None for {entry}: return a sample, or leave such entries out."
            )
        return sample


def _are_wide(dataset: list[dict], key: str) -> list[bool]:
    """Whether each image is wider than high: the two groups of Detectron2's ``AspectRatioGroupedDataset``."""
    for index, item in enumerate(dataset):
        if not {"width", "height"} <= item.keys():
            raise ValueError(
                f"Entry {index} of dataloader.train.{key} has no width and height, which "
                "dataloader.train.aspect_ratio_grouping needs: add them, or set it to False."
            )
    return [item["width"] > item["height"] for item in dataset]


class MixedSamples(torchdata.Dataset):
    """
    Sample n of a run in which every iteration takes the next ``counts[0]`` labelled samples, then the next
    ``counts[1]`` unlabeled ones.
    """

    def __init__(self, labelled: RunSamples, unlabeled: RunSamples, counts: tuple[int, int]) -> None:
        self._labelled, self._unlabeled, self._counts = labelled, unlabeled, counts

    def __getitem__(self, n: int) -> Any:
        labelled, unlabeled = self._counts
        iteration, place = divmod(n, labelled + unlabeled)
        if place < labelled:
            return self._labelled[iteration * labelled + place]
        sample = self._unlabeled[iteration * unlabeled + place - labelled]
        # The mapper may have dropped the mark and made empty labels, as of an image without objects.
        return {**sample, "unlabeled": True}


class RunSampler(torchdata.Sampler):
    """This rank's n: start + rank, start + rank + world size, ..."""

    def __init__(self, start: int) -> None:
        self._first = start + comm.get_rank()
        self._step = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first, self._step)
