"""Training loader whose sample n is a function of the seed and n alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import build_batch_data_loader
from detectron2.utils import comm
from torch.utils import data as torchdata

__all__ = ["build_train_loader", "derive_seed", "isolated_rng"]

# First element of the key given to derive_seed(): streams of random numbers that must not meet.
_PERMUTATION, _SAMPLE, _WORKERS = range(3)


def derive_seed(seed: int, *key: int) -> int:
    """
    A 63-bit seed for the stream ``key`` of a run seeded with ``seed``; all integers are >= 0. Neighbouring
    seeds and keys give unrelated results, the same on every platform (:class:`numpy.random.SeedSequence`).
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """
    Seed the CPU generators that data mappers draw from (``random``, ``numpy.random``, ``torch``), and put
    them back as they were on exit. CUDA generators are left alone.
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


class _RunSamples(torchdata.Dataset):
    """Sample n of a run: map-style over n = 0, 1, 2, ... without end."""

    def __init__(self, dataset: list[dict], mapper: Callable[[dict], Any], seed: int) -> None:
        self._dataset = DatasetFromList(dataset, copy=False)
        self._mapper = mapper
        self._seed = seed
        self._epoch = -1
        self._permutation: list[int] = []

    def _index(self, n: int) -> int:
        epoch, position = divmod(n, len(self._dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, _PERMUTATION, epoch))
            self._permutation = torch.randperm(len(self._dataset), generator=generator).tolist()
            self._epoch = epoch
        return self._permutation[position]

    def __getitem__(self, n: int) -> Any:
        index = self._index(n)
        with isolated_rng(derive_seed(self._seed, _SAMPLE, n)):
            sample = self._mapper(self._dataset[index])
        if sample is None:
            # Detectron2's MapDataset would draw another image from a generator whose state cannot be resumed.
            raise ValueError(
                f"dataloader.train.mapper returned None for entry {index} of the dataset: return a sample, "
                "or leave such entries out of dataloader.train.dataset."
            )
        return sample


class _RunSampler(torchdata.Sampler):
    """This rank's n: start + rank, start + rank + world size, ..."""

    def __init__(self, start: int) -> None:
        self._first = start + comm.get_rank()
        self._step = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first, self._step)


def build_train_loader(
    *,
    dataset: list[dict],
    mapper: Callable[[dict], Any],
    total_batch_size: int,
    num_workers: int = 0,
    seed: int,
    start: int = 0,
) -> torchdata.DataLoader:
    """
    Like :func:`detectron2.data.build_detection_train_loader`, but resumable and the same for every run of one
    seed.

    Sample n of the run (n = 0, 1, 2, ... over all ranks) depends on ``(seed, n)`` only: its image is entry
    ``n % len(dataset)`` of the permutation of epoch ``n // len(dataset)``, and what the mapper draws from
    ``random``, ``numpy.random`` and ``torch`` is seeded by ``(seed, n)``. The number of workers changes
    nothing, nor does the number of ranks to the samples that make up an iteration; the training process's
    generators are not touched. A mapper with a generator of its own is outside this promise.

    There is no aspect-ratio grouping: its half-filled buckets are part of the order and cannot be resumed.

    Args:
        dataset: Detectron2's dataset dicts, e.g. from :func:`detectron2.data.get_detection_dataset_dicts`.
        mapper: makes a training sample of one dataset dict, e.g. :class:`detectron2.data.DatasetMapper`.
        total_batch_size: images an iteration, over all ranks.
        num_workers: worker processes a rank; 0 loads in the training process.
        seed: >= 0.
        start: the first n to load: iterations done x ``total_batch_size``.

    Returns:
        Endless loader of lists of ``total_batch_size / ranks`` samples.

    Raises:
        ValueError: an empty dataset, a negative ``seed`` or ``start``, or a ``total_batch_size`` that is not
            a positive multiple of the number of ranks.
    """
    ranks = comm.get_world_size()
    if not dataset:
        raise ValueError("The training dataset is empty: check dataloader.train.dataset (names, filters).")
    if seed < 0 or start < 0:
        raise ValueError(f"seed and start must be >= 0, but dataloader.train has seed={seed}, start={start}.")
    if total_batch_size <= 0 or total_batch_size % ranks:
        raise ValueError(
            f"dataloader.train.total_batch_size is {total_batch_size}, expected a positive multiple of the "
            f"{ranks} process(es) of this run."
        )
    return build_batch_data_loader(
        _RunSamples(dataset, mapper, seed),
        _RunSampler(start),
        total_batch_size,
        num_workers=num_workers,
        # A generator of its own: otherwise the loader draws its workers' seeds from the process's.
        seed=derive_seed(seed, _WORKERS),
    )
