"""Training loader whose sample n is a function of the seed and n alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.data.build import build_batch_data_loader
from detectron2.utils import comm
from torch.utils import data as torchdata

from d2kd.data.annotations import drop_broken_boxes
from d2kd.data.samples import UNLABELED, WORKERS, MixedSamples, RunSampler, RunSamples, derive_seed
from d2kd.data.unlabeled import without_labels

__all__ = ["build_train_loader"]

logger = logging.getLogger(f"detectron2.{__name__}")  # which any script that trains sets up


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
    on_error: str = "raise",
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
        dataset: Detectron2's dataset dicts, e.g. from :func:`detectron2.data.get_detection_dataset_dicts`. Boxes that
            cannot be learnt from are left out, with a warning: see :func:`drop_broken_boxes`.
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
        on_error: "raise", or "skip": an image that cannot be read is replaced by the next entry, and the log counts it.

    Returns:
        Endless loader of lists of ``total_batch_size / ranks`` samples, the labelled ones first; the others are
        dicts with ``"unlabeled": True``.

    Raises:
        SampleError: in an iteration, the mapper fails or returns None; the message names the entry and its file.
        ValueError: what :func:`drop_broken_boxes` refuses, an unknown ``on_error``, an empty dataset, a negative
            ``seed`` or ``start``, a ``total_batch_size`` or ``unlabeled_batch_size`` that is not a positive multiple of
            the number of ranks, an ``unlabeled_batch_size`` that leaves no labelled image or comes without
            ``unlabeled`` (or the reverse), with ``unlabeled`` or ``aspect_ratio_grouping`` a ``start`` inside an
            iteration, or with ``aspect_ratio_grouping`` an entry without "width" and "height".
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
    if on_error not in ("raise", "skip"):
        raise ValueError(f"dataloader.train.on_error is {on_error!r}, expected 'raise' or 'skip'.")
    dataset = drop_broken_boxes(dataset, "dataloader.train.dataset")
    mixed = unlabeled is not None or unlabeled_batch_size != 0
    if start % total_batch_size and (mixed or aspect_ratio_grouping):
        raise ValueError(
            f"dataloader.train.start is {start}, expected a multiple of total_batch_size={total_batch_size}: batches "
            "with unlabeled images or with aspect_ratio_grouping begin with an iteration."
        )
    labelled_batch_size = total_batch_size - unlabeled_batch_size
    logger.info("Training data: %d images, %d an iteration", len(dataset), labelled_batch_size)
    samples: torchdata.Dataset
    samples = labelled = RunSamples(
        dataset, mapper, seed, batch_size=labelled_batch_size * aspect_ratio_grouping, on_error=on_error
    )
    if mixed:
        images = without_labels(unlabeled or ())
        _check_unlabeled(images, unlabeled_batch_size, total_batch_size)
        # Random streams of its own, derived from the run's seed.
        others = RunSamples(
            images,
            mapper,
            derive_seed(seed, UNLABELED),
            batch_size=unlabeled_batch_size * aspect_ratio_grouping,
            on_error=on_error,
            key="unlabeled",
        )
        samples = MixedSamples(labelled, others, (labelled_batch_size, unlabeled_batch_size))
    return build_batch_data_loader(
        samples,
        RunSampler(start),
        total_batch_size,
        num_workers=num_workers,
        # A generator of its own: otherwise the loader draws its workers' seeds from the process's.
        seed=derive_seed(seed, WORKERS),
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
