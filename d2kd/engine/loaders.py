"""The data loaders of a config."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from detectron2.data import build_detection_test_loader, build_detection_train_loader
from omegaconf import DictConfig, flag_override

from d2kd.config.nodes import made, target_of
from d2kd.data.mapping import NamingMapper

__all__ = ["make_loader"]


def make_loader(cfg: DictConfig, split: str) -> Iterable:
    """
    The loader of ``cfg.dataloader[split]``. Detectron2's own get a :class:`d2kd.data.mapping.NamingMapper`;
    :func:`d2kd.data.build_train_loader` names entries itself, and loaders of users may read their mapper.

    Raises:
        ValueError, OSError: see :func:`d2kd.config.nodes.made`.
    """
    node = cfg.dataloader[split]
    if target_of(node) in (build_detection_train_loader, build_detection_test_loader) and node.get("mapper"):
        node = deepcopy(node)  # whose interpolations still lead into cfg
        with flag_override(node, "allow_objects", True):
            key = f"dataloader.{split}.mapper"
            node.mapper = NamingMapper(made(node.mapper, key), key)
    return made(node, f"dataloader.{split}")
