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

from d2kd.data.samples import SampleError, map_entry
from d2kd.data.unlabeled import without_labels

__all__ = ["build_train_loader", "derive_seed"]

# First element of the key given to derive_seed(): independent streams of random numbers.
_PERMUTATION, _SAMPLE, _WORKERS, _UNLABELED = range(4)


def derive_seed(seed: int, *key: int) -> int:
    """
    A 63-bit seed for the stream ``key`` of a run seeded with ``seed``; all integers are >= 0. Neighbouring seeds and
    keys give unrelated results, the same on every platform (:class:`numpy.random.SeedSequence`).
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _isolated_rng(seed: int) -> Iterator[None]:
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


class _RunSamples(torchdata.Dataset):
    """
    Sample n of a run: map-style over n = 0, 1, 2, ... without end.

    Args:
        batch_size: how many successive samples should be all wide or all not; 0: none.
        key: which argument of :func:`build_train_loader` the dataset is, for messages.
    """

    def __init__(
        self, dataset: list[dict], mapper: Callable[[dict], Any], seed: int, batch_size: int, key: str = "dataset"
    ) -> None:
        self._wide = _are_wide(dataset, key) if batch_size else []
        self._batch_size = batch_size
        self._dataset = DatasetFromList(dataset, copy=False)
        self._mapper = mapper
        self._seed = seed
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
        index = self._index(n)
        item = self._dataset[index]
        entry = f"entry {index} of dataloader.train.{self._key} ({item.get('file_name', 'without a file_name')})"
        with _isolated_rng(derive_seed(self._seed, _SAMPLE, n)):
            sample = map_entry(self._mapper, item, "dataloader.train.mapper", entry)
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


class _MixedSamples(torchdata.Dataset):
    """
    Sample n of a run in which every iteration takes the next ``counts[0]`` labelled samples, then the next
    ``counts[1]`` unlabeled ones.
    """

    def __init__(self, labelled: _RunSamples, unlabeled: _RunSamples, counts: tuple[int, int]) -> None:
        self._labelled, self._unlabeled, self._counts = labelled, unlabeled, counts

    def __getitem__(self, n: int) -> Any:
        labelled, unlabeled = self._counts
        iteration, place = divmod(n, labelled + unlabeled)
        if place < labelled:
            return self._labelled[iteration * labelled + place]
        sample = self._unlabeled[iteration * unlabeled + place - labelled]
        # The mapper may have dropped the mark and made empty labels, as of an image without objects.
        return {**sample, "unlabeled": True}


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
    aspect_ratio_grouping: bool = False,
    pin_memory: bool = False,
    persistent_workers: bool = False,
    unlabeled: list[dict] | None = None,
    unlabeled_batch_size: int = 0,
) -> torchdata.DataLoader:
    """
    Like :func:`detectron2.data.build_detection_train_loader`, but resumable and the same for every run of one seed.

    Sample n of the run (n = 0, 1, 2, ... over all ranks) depends on ``(seed, n)`` only: its image is entry
    ``n % len(dataset)`` of the permutation of epoch ``n // len(dataset)``, and what the mapper draws from
    ``random``, ``numpy.random`` and ``torch`` is seeded by ``(seed, n)``. So neither the number of workers nor the
    number of ranks changes the samples of an iteration, and the generators of the training process are not touched.
    This does not hold for a mapper with a generator of its own.

    With ``aspect_ratio_grouping``, the permutation of an epoch is sorted into batches whose images are all wider than
    high, or all not, which need less padding. It is a function of ``(seed, epoch)`` and the batch size, so it resumes,
    which Detectron2's half-filled buckets cannot. The whole batch of an iteration is of one group, so that the number
    of ranks changes nothing here either. Every image still occurs once an epoch: its last images, and those that
    complete the batch in which the epoch before ended, are of both groups, in at most two batches an epoch.

    With ``unlabeled``, every iteration has ``unlabeled_batch_size`` images of that dataset beside its labelled ones,
    and every rank its share of both. Each dataset has its own permutation, so the labelled samples and their order
    are those of a run without ``unlabeled`` and with ``total_batch_size - unlabeled_batch_size`` images.

    Args:
        dataset: Detectron2's dataset dicts, e.g. from :func:`detectron2.data.get_detection_dataset_dicts`.
        mapper: makes a training sample of one dataset dict, e.g. :class:`detectron2.data.DatasetMapper`.
        total_batch_size: images an iteration, over all ranks and with the unlabeled ones.
        num_workers: worker processes a rank; 0 loads in the training process.
        seed: >= 0.
        start: the first n to load: iterations done x ``total_batch_size``.
        aspect_ratio_grouping: see above; the entries need "width" and "height". Labelled and unlabeled images are
            grouped apart.
        pin_memory: copy samples into pinned memory, from which a GPU copies faster; of no effect without a GPU.
        persistent_workers: keep the workers for the next pass over the loader. The loader is endless, so this is for
            loops that begin it several times; of no effect without workers.
        unlabeled: dataset dicts of images to train on without labels. The mapper does not see the labels that they have
            (:func:`d2kd.data.without_labels`).
        unlabeled_batch_size: how many of ``total_batch_size`` are of ``unlabeled``.

    Returns:
        Endless loader of lists of ``total_batch_size / ranks`` samples, the labelled ones first; the others are
        dicts with ``"unlabeled": True``.

    Raises:
        SampleError: in an iteration, the mapper fails or returns None; the message names the entry and its file.
        ValueError: an empty dataset, a negative ``seed`` or ``start``, a ``total_batch_size`` or
            ``unlabeled_batch_size`` that is not a positive multiple of the number of ranks, an
            ``unlabeled_batch_size`` that leaves no labelled image or comes without ``unlabeled`` (or the
            reverse), with ``unlabeled`` or ``aspect_ratio_grouping`` a ``start`` inside an iteration, or with
            ``aspect_ratio_grouping`` an entry without "width" and "height".
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
    mixed = unlabeled is not None or unlabeled_batch_size != 0
    if start % total_batch_size and (mixed or aspect_ratio_grouping):
        raise ValueError(
            f"dataloader.train.start is {start}, expected a multiple of total_batch_size={total_batch_size}: batches "
            "with unlabeled images or with aspect_ratio_grouping begin with an iteration."
        )
    labelled_batch_size = total_batch_size - unlabeled_batch_size
    samples: torchdata.Dataset
    samples = labelled = _RunSamples(dataset, mapper, seed, labelled_batch_size * aspect_ratio_grouping)
    if mixed:
        images = without_labels(unlabeled or ())
        _check_unlabeled(images, unlabeled_batch_size, total_batch_size)
        # Random streams of its own, derived from the run's seed.
        own_seed = derive_seed(seed, _UNLABELED)
        others = _RunSamples(images, mapper, own_seed, unlabeled_batch_size * aspect_ratio_grouping, "unlabeled")
        samples = _MixedSamples(labelled, others, (labelled_batch_size, unlabeled_batch_size))
    return build_batch_data_loader(
        samples,
        _RunSampler(start),
        total_batch_size,
        num_workers=num_workers,
        # A generator of its own: otherwise the loader draws its workers' seeds from the process's.
        seed=derive_seed(seed, _WORKERS),
        # Without a GPU or workers, torch warns of the one and refuses the other.
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=persistent_workers and num_workers > 0,
    )


def _check_unlabeled(unlabeled: list[dict], batch_size: int, total_batch_size: int) -> None:
    """Raise ValueError if the arguments of :func:`build_train_loader` do not give every batch the same mixture."""
    ranks = comm.get_world_size()
    if not unlabeled:
        raise ValueError(
            f"dataloader.train.unlabeled_batch_size is {batch_size}, but there are no unlabeled images: check "
            "dataloader.train.unlabeled (names, filters; filter_empty drops images without annotations)."
        )
    if not 0 < batch_size < total_batch_size or batch_size % ranks:
        raise ValueError(
            f"dataloader.train.unlabeled_batch_size is {batch_size}, expected a positive multiple of the {ranks} "
            f"process(es) of this run, smaller than dataloader.train.total_batch_size={total_batch_size}, which counts "
            "labelled and unlabeled images."
        )
