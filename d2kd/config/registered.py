"""The detector that a yacs config names, or why it cannot be one that d2kd distils."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from d2kd.modeling import DistilledDetector, detectors, get_adapter
from d2kd.modeling.adapters import check_class

__all__ = ["DISTILLED", "build_registered", "check_readable"]

#: The name under which distillation itself is registered.
DISTILLED = DistilledDetector.__name__
#: Detectors whose keys d2kd adds to a config, and by what.
_ADDED_BY = {"ATSS": "add_atss_config", "FCOS": "add_fcos_config", "GFL": "add_gfl_config"}

Builder = Callable[[CfgNode], nn.Module]


def build_registered(cfg: CfgNode, name: str, key: str) -> DenseDetector:
    """
    The detector that a yacs config describes if ``MODEL.META_ARCHITECTURE`` is ``name``.

    Args:
        cfg: a whole config; not changed.
        name: a name in Detectron2's registry.
        key: where the name was given, for messages.

    Raises:
        ValueError: ``name`` is not registered, has no yacs form, is the name of no dense detector that d2kd reads, or
            cannot be built; each sentence names the page that helps.
        TypeError: ``name`` is a function that builds no such detector.
    """
    reason = _refusal(cfg, name)
    if reason is not None:
        raise ValueError(f"{key} is {name!r}{reason}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = name
    try:
        detector = build_model(cfg)
    except Exception as error:  # of code that takes the config's values as they are
        found = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{key} is {name!r}, which cannot be built of this config (is its _BASE_ missing?): {found}."
        ) from error
    check_readable(detector, f"{key} is {name!r}")
    return detector


def check_readable(detector: DenseDetector, what: str) -> None:
    """
    Raises:
        TypeError: no adapter reads it; ``what`` says where it comes from.
    """
    try:
        get_adapter(detector)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from error


def _refusal(cfg: CfgNode, name: str) -> str | None:
    """Why ``name`` cannot be built, the end of a sentence that begins with it; None: no reason is known."""
    registered: dict[str, Builder] = dict(META_ARCH_REGISTRY)
    builder = registered.get(name)
    if name == DISTILLED:
        return ", which distils: give what MODEL.META_ARCHITECTURE would be without distillation."
    if name in _ADDED_BY and name not in cfg.MODEL and (builder is None or builder.__module__.startswith("d2kd.")):
        return (
            f", but the config has no MODEL.{name}: call d2kd.modeling.detectors.{_ADDED_BY[name]}(cfg) before it is "
            "merged (docs/embedding.md#yacs-configs)."
        )
    if builder is None:
        if name in detectors.__all__:
            return f", which has no yacs form: write its LazyConfig ({_LAZY})."
        known = sorted(entry for entry, x in registered.items() if entry != DISTILLED and _may_be_read(x))
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return (
            f", which is not in detectron2's META_ARCH_REGISTRY: {hint}Of those that are, d2kd may read "
            f"{', '.join(known)}; import the module that registers yours before the model is built "
            "(docs/own_detector.md#another-projects-registry)."
        )
    if isinstance(builder, type):
        try:
            check_class(builder)
        except TypeError as error:
            return f": {error}"
    if not hasattr(builder, "from_config") and not _takes_a_config(builder):
        return (
            f", which has no yacs form, since {builder.__module__}.{builder.__qualname__} takes other arguments than a "
            f"config: give it a from_config (detectron2.config.configurable), or write its LazyConfig ({_LAZY})."
        )
    return None


_LAZY = "docs/embedding.md#wrap-the-model"


def _takes_a_config(builder: Builder) -> bool:
    try:
        inspect.signature(builder).bind(CfgNode())
    except TypeError:
        return False
    return True


def _may_be_read(builder: Builder) -> bool:
    """Whether a registered class or function may build a detector that an adapter reads."""
    if not isinstance(builder, type):
        return True  # a function: what it builds is checked
    try:
        check_class(builder)
    except TypeError:
        return False
    return True
