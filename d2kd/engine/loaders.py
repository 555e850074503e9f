"""The data loaders of a config, and its evaluator."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, MutableSequence
from copy import deepcopy
from difflib import get_close_matches

from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from omegaconf import DictConfig, OmegaConf, flag_override
from torch.utils.data import DataLoader

from d2kd.config.nodes import dataset_names, made, target_of
from d2kd.data.mapping import NamingMapper
from d2kd.data.reading import DatasetError, fault_of_datasets

__all__ = ["check_evaluator", "make_evaluator", "make_loader"]


def make_loader(cfg: DictConfig, split: str) -> Iterable:
    """
    The loader of ``cfg.dataloader[split]``. Detectron2's own get a :class:`d2kd.data.mapping.NamingMapper`;
    :func:`d2kd.data.build_train_loader` names entries itself, and loaders of users may read their mapper. Workers
    outlive a signal to the whole group of processes, so that the run can finish its step.

    Raises:
        DatasetError: a dataset cannot be read; says why.
        ValueError, OSError: see :func:`d2kd.config.nodes.made`.
    """
    node, key = cfg.dataloader[split], f"dataloader.{split}"
    if target_of(node) in (build_detection_train_loader, build_detection_test_loader) and node.get("mapper"):
        node = deepcopy(node)  # whose interpolations still lead into cfg
        with flag_override(node, "allow_objects", True):
            node.mapper = NamingMapper(made(node.mapper, f"{key}.mapper"), f"{key}.mapper")
    try:
        loader = made(node, key)
    except (ValueError, OSError) as error:
        _explain(node, key, error)
        raise
    if isinstance(loader, DataLoader) and loader.num_workers > 0:
        loader.worker_init_fn = _Steady(loader.worker_init_fn)
    return loader


class _Steady:
    """A ``worker_init_fn``: the worker ignores Ctrl-C, and a SIGTERM that is not of the process that it loads for."""

    def __init__(self, worker_init_fn: Callable[[int], object] | None) -> None:
        self._worker_init_fn = worker_init_fn

    def __call__(self, worker: int) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and hasattr(signal, "sigwaitinfo"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of the threads to come, too
            threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()
        if self._worker_init_fn is not None:
            self._worker_init_fn(worker)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch does


def check_evaluator(cfg: DictConfig) -> None:
    """
    Check what Detectron2's evaluator for COCO is of, when the data of ``dataloader.test`` are registered. Of another
    dataset it would take the labels of images that have the same numbers.

    Raises:
        DatasetError: its dataset is not registered, or is not one that is tested.
    """
    node, key = cfg.dataloader.evaluator, "dataloader.evaluator"
    if not (OmegaConf.is_dict(node) and target_of(node) is COCOEvaluator):
        return
    name, tested = node.get("dataset_name"), dataset_names(cfg, "test")
    if not isinstance(name, str) or name not in DatasetCatalog.list():
        near = get_close_matches(str(name), DatasetCatalog.list(), 2, 0.8)
        hint = f": did you mean {' or '.join(near)}?" if near else "."
        raise DatasetError(f"{key}.dataset_name is {name!r}, expected one registered dataset{hint}")
    file, *files = (MetadataCatalog.get(each).get("json_file") for each in (name, *tested))
    if tested and name not in tested and (file is None or file not in files):
        raise DatasetError(
            f"{key}.dataset_name is {name!r}, but dataloader.test reads {', '.join(tested)}: set both to one dataset."
        )


def make_evaluator(cfg: DictConfig) -> DatasetEvaluator | MutableSequence[DatasetEvaluator]:
    """
    What ``cfg.dataloader.evaluator`` makes.

    Raises:
        DatasetError: see :func:`check_evaluator`; or its annotations lack what pycocotools reads.
        ValueError, OSError: see :func:`d2kd.config.nodes.made`.
    """
    check_evaluator(cfg)
    node, key = cfg.dataloader.evaluator, "dataloader.evaluator"
    evaluator = made(node, key)
    if isinstance(evaluator, COCOEvaluator):
        for annotation in evaluator._coco_api.anns.values():  # which it does not tell otherwise
            for field in ("bbox", "area", "iscrowd"):
                if field not in annotation:
                    raise DatasetError(
                        f"Annotation {annotation['id']} of {node.dataset_name} ({key}.dataset_name) has no {field!r}, "
                        "which AP needs: add it."
                    )
    return evaluator


def _explain(node: DictConfig, key: str, error: Exception) -> None:
    """
    Say more of why a loader could not be made.

    Raises:
        DatasetError: there is something wrong with a dataset.
        ValueError, OSError: another of its arguments cannot be made.
    """
    for field in (str(name) for name in node if OmegaConf.is_dict(node[name])):
        argument, argument_key = node[field], f"{key}.{field}"
        cause: BaseException | None = error if isinstance(error, DatasetError) else None
        try:
            made(argument, argument_key)
        except (ValueError, OSError) as of_argument:
            error = of_argument
            cause = error if isinstance(error, OSError) else error.__cause__
            if cause is None:  # the sentence is d2kd's own
                raise
        if cause is None:
            continue
        registered = target_of(argument) is get_detection_dataset_dicts
        if registered and (fault := fault_of_datasets(argument.names, f"{argument_key}.names")):
            raise DatasetError(fault) from cause
        if registered and isinstance(cause, AssertionError):
            raise DatasetError(
                f"{argument_key} cannot be made: {cause} Images without objects, or with crowds alone, are left out by "
                "filter_empty."
            ) from cause
        if isinstance(cause, KeyError) and field == "sampler":
            raise DatasetError(
                f"{argument_key} cannot be made: images without labels have no {cause}: give them as "
                "dataloader.train.unlabeled."
            ) from cause
        raise error
