"""The data loaders of a config, and its evaluator."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, MutableSequence
from copy import deepcopy

from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from omegaconf import DictConfig, OmegaConf, flag_override

from d2kd.config.nodes import target_of
from d2kd.data.mapping import NamingMapper
from d2kd.data.reading import DatasetError, check_registered, fault_of_datasets

__all__ = ["make_evaluator", "make_loader"]


def make_loader(cfg: DictConfig, split: str) -> Iterable:
    """
    The loader of ``cfg.dataloader[split]``. Detectron2's own get a :class:`d2kd.data.mapping.NamingMapper`;
    :func:`d2kd.data.build_train_loader` names entries itself, and loaders of users may read their mapper.

    Raises:
        DatasetError: a dataset, or another argument of the loader, cannot be made; says why.
        Exception: what else the loader raises.
    """
    node = cfg.dataloader[split]
    if target_of(node) in (build_detection_train_loader, build_detection_test_loader) and node.get("mapper"):
        node = deepcopy(node)  # whose interpolations still lead into cfg
        with flag_override(node, "allow_objects", True):
            node.mapper = NamingMapper(instantiate(node.mapper), f"dataloader.{split}.mapper")
    try:
        return instantiate(node)
    except Exception as error:  # of Detectron2's readers, which assert, or of a person's own function
        _explain(node, f"dataloader.{split}", error)
        raise


def make_evaluator(cfg: DictConfig) -> DatasetEvaluator | MutableSequence[DatasetEvaluator]:
    """
    What ``cfg.dataloader.evaluator`` makes.

    Raises:
        DatasetError: Detectron2's for COCO of a dataset that is not registered, or of annotations that lack what
            pycocotools reads.
    """
    if target_of(cfg.dataloader.evaluator) is COCOEvaluator:
        check_registered([cfg.dataloader.evaluator.dataset_name], "dataloader.evaluator.dataset_name")
    evaluator = instantiate(cfg.dataloader.evaluator)
    if isinstance(evaluator, COCOEvaluator):
        for annotation in evaluator._coco_api.anns.values():  # which it does not tell otherwise
            for field in ("bbox", "area", "iscrowd"):
                if field not in annotation:
                    raise DatasetError(
                        f"Annotation {annotation['id']} of {cfg.dataloader.evaluator.dataset_name} "
                        f"(dataloader.evaluator.dataset_name) has no {field!r}, which AP needs: add it."
                    )
    return evaluator


def _explain(node: DictConfig, key: str, error: Exception) -> None:
    """
    Say why a loader could not be made.

    Raises:
        DatasetError: one of its arguments cannot be made.
    """
    for field in (str(name) for name in node if OmegaConf.is_dict(node[name])):
        has_names, names_key = "names" in node[field], f"{key}.{field}.names"
        try:
            instantiate(node[field])
        except Exception as cause:
            if _is_d2kds(cause):
                raise
            if has_names and (fault := fault_of_datasets(node[field].names, names_key)):
                raise DatasetError(fault) from cause
            found = f"{type(cause).__name__}: {cause.args[0] if isinstance(cause, KeyError) else cause}"
            if "annotations" in str(cause):  # which images without labels have not
                found += ", which images without labels do not have: give these as dataloader.train.unlabeled"
            if isinstance(cause, AssertionError):  # of Detectron2's get_detection_dataset_dicts
                found = f"{cause} Images without objects, or with crowds alone, are left out by filter_empty"
            raise DatasetError(f"{key}.{field} cannot be made: {found}.") from cause
        if isinstance(error, DatasetError) and has_names and (fault := fault_of_datasets(node[field].names, names_key)):
            raise DatasetError(fault) from error


def _is_d2kds(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return (frame.f_globals.get("__package__") or "").partition(".")[0] == "d2kd"
