"""Distillation in Detectron2's yacs configs: the keys, and the builder that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from d2kd.config.registered import build_registered
from d2kd.config.teacher_file import teacher_node
from d2kd.losses import DistillationLoss
from d2kd.methods import METHODS, get_losses
from d2kd.modeling import distillation
from d2kd.modeling.adapters import preset_families
from d2kd.structures import kept_random_state

__all__ = ["add_distillation_config"]

_NODE = "MODEL.DISTILLATION"


def add_distillation_config(cfg: CfgNode) -> None:
    """
    Add ``cfg.MODEL.DISTILLATION``, for ``MODEL.META_ARCHITECTURE: DistilledDetector``.

    All other keys are the student's, as they would be without distillation. The teacher's are in its own file.
    """
    node = cfg.MODEL.DISTILLATION = CfgNode()
    # What MODEL.META_ARCHITECTURE would be without distillation: "RetinaNet", "GFL", "ATSS", "FCOS" or your own.
    node.STUDENT_META_ARCHITECTURE = ""
    # The family whose presets the student takes, if its class and adapter name none; "": its own.
    node.STUDENT_FAMILY = ""
    # A name of d2kd.list_methods(); "": the student alone, the baseline, whatever the values of the keys below.
    node.METHOD = ""
    # Changes to that method's losses: "NAME.FIELD=value", or "NAME=null" to switch one off.
    node.LOSSES = []
    # The teacher's own config, a yacs .yaml or a LazyConfig .py, and its checkpoint (path or URL). Neither is read
    # before training starts. For a yacs teacher, give the config.yaml that Detectron2 wrote beside the checkpoint: it
    # has every key, including those that a project added.
    node.TEACHER_CONFIG = ""
    node.TEACHER_WEIGHTS = ""
    # Which of that file's entries are its weights, e.g. "ema", an average that some trainers keep beside "model".
    node.TEACHER_WEIGHTS_ENTRY = "model"
    # Further packages whose code a LazyConfig .yaml of the teacher may name, e.g. ["my_project"] (docs/embedding.md).
    node.TEACHER_TRUST = []
    # The teacher's detector family if it is not the student's, e.g. "RetinaNet" for a GFL student; "": the student's.
    # Crossed losses are those of the method's preset for this family.
    node.TEACHER_FAMILY = ""
    # Channel order that the teacher was trained with, "BGR" or "RGB"; "": its own input_format, else "BGR".
    node.TEACHER_INPUT_FORMAT = ""
    # What it computes in, "fp32", "bf16" or "fp16", and with, "eager", "folded" or "compile" (docs/embedding.md).
    node.TEACHER_PRECISION = "fp32"
    node.TEACHER_ENGINE = "folded"
    # Whether to examine, after the first batches, what it knows of them, and to stop if that is nothing.
    node.TEACHER_PREFLIGHT = True
    # Pairs [teacher's class id, student's class id], e.g. [[0, 2], [5, 0]], if the two do not have the same classes in
    # the same order; []: equal ids. Classes that are in no pair take no part in distillation.
    node.CLASS_MAP = []
    # [student's, teacher's channels] of the taps that a crossed loss sends into the teacher's head, if the heads'
    # widths differ: each branch gets a projector; []: none.
    node.TAP_PROJECTOR_CHANNELS = []


@META_ARCH_REGISTRY.register()
def DistilledDetector(cfg: CfgNode) -> distillation.DistilledDetector:
    """
    Build the class of the same name from a yacs config: this function's name is its key in Detectron2's registry, for
    ``MODEL.META_ARCHITECTURE: DistilledDetector``. The teacher is not built yet.

    Args:
        cfg: a whole config with ``MODEL.DISTILLATION``; not changed.

    Raises:
        ValueError: no ``MODEL.DISTILLATION``, a student that d2kd does not read, an unknown method, a method without a
            teacher, a change of losses that cannot be made, or a wrong class map. Each message names the key.
        TypeError: the student overrides what d2kd replaces.
    """
    if "DISTILLATION" not in cfg.MODEL:
        raise ValueError(f"The config has no {_NODE}: call d2kd.add_distillation_config(cfg) before it is merged.")
    node = cfg.MODEL.DISTILLATION
    # Before anything else draws random numbers: a baseline of this seed starts from the same weights.
    student = build_registered(cfg, node.STUDENT_META_ARCHITECTURE, f"{_NODE}.STUDENT_META_ARCHITECTURE")
    if not node.METHOD:
        return distillation.DistilledDetector(student=student, input_format=cfg.INPUT.FORMAT)
    for key in ("TEACHER_CONFIG", "TEACHER_WEIGHTS"):
        if not node[key]:
            raise ValueError(
                f"{_NODE}.{key} is {node[key]!r}, but {_NODE}.METHOD is {node.METHOD!r}: give the path, or set METHOD "
                'to "" to train the student alone.'
            )
    return distillation.DistilledDetector(
        student=student,
        input_format=cfg.INPUT.FORMAT,
        losses=_build_losses(type(student), node, cfg.SOLVER.MAX_ITER),
        teacher={
            "model": teacher_node(node.TEACHER_CONFIG, f"{_NODE}.TEACHER_CONFIG", node.TEACHER_TRUST),
            "checkpoint": node.TEACHER_WEIGHTS,
            "weights": node.TEACHER_WEIGHTS_ENTRY,
            "input_format": node.TEACHER_INPUT_FORMAT or None,
            "class_map": _class_map(node.CLASS_MAP or ()),
            "precision": node.TEACHER_PRECISION,
            "engine": node.TEACHER_ENGINE,
            "preflight": node.TEACHER_PREFLIGHT,
        },
        tap_projector_channels=node.TAP_PROJECTOR_CHANNELS or None,
    )


def _class_map(pairs: Sequence[Sequence[int]]) -> dict[int, int] | None:
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(type(x) is not int for x in pair):
            raise ValueError(
                f"{_NODE}.CLASS_MAP has {pair!r}, expected pairs [teacher's class id, student's class id] such as "
                "[[0, 2], [5, 0]]."
            )
    result = {teacher_id: student_id for teacher_id, student_id in pairs}
    if len(result) < len(pairs):
        raise ValueError(f"{_NODE}.CLASS_MAP is {pairs}, which names one of the teacher's classes twice.")
    return result or None


def _build_losses(detector_class: type, node: CfgNode, max_iter: int) -> dict[str, DistillationLoss]:
    method, changes = node.METHOD, node.LOSSES or ()
    presets: Mapping[str, object] = METHODS.get(method, {})
    for key in ("STUDENT_FAMILY", "TEACHER_FAMILY"):
        if presets and node[key] and node[key] not in presets:
            raise ValueError(
                f"{_NODE}.{key} is {node[key]!r}, expected one that {method} has a preset for: {', '.join(presets)}."
            )
    families = [node.STUDENT_FAMILY] if node.STUDENT_FAMILY else preset_families(detector_class)
    if presets and not any(family in presets for family in families):
        raise ValueError(
            f"{_NODE}.METHOD is {method!r}, which has no preset for {' or '.join(families)}, only for "
            f"{', '.join(presets)}: set {_NODE}.STUDENT_FAMILY to that whose predictions are coded as the student's."
        )
    try:
        preset = get_losses(method, *families, teacher=node.TEACHER_FAMILY)
    except ValueError as error:
        raise ValueError(f"{_NODE}.METHOD is {method!r}. {error}") from error
    # Presets stretch their schedules over train.max_iter, as a LazyConfig has it.
    tree = OmegaConf.create({"train": {"max_iter": max_iter}, "losses": preset}, flags={"allow_objects": True})
    losses = tree.losses
    off = {_apply(losses, change, method) for change in changes}
    built = {}
    with kept_random_state():  # so that the baseline draws the same numbers after this
        for name in preset:
            if name in off:
                continue
            try:
                built[name] = instantiate(losses[name])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{_NODE}.LOSSES is {list(changes)}, with which {method}'s {name} cannot be built: {error}"
                ) from error
    if built and not any(loss.weight > 0 for loss in built.values()):
        raise ValueError(
            f"{_NODE}.LOSSES is {list(changes)}, with which the weights of all {method}'s losses are 0: set "
            f'{_NODE}.METHOD to "" to train the student alone.'
        )
    return built


def _apply(losses: DictConfig, change: str, method: str) -> str | None:
    """Make one change of LOSSES; return the name of the loss that it switches off, if it does."""
    if not isinstance(change, str) or "=" not in change:
        raise ValueError(f"{_NODE}.LOSSES has {change!r}, expected texts 'NAME.FIELD=value' or 'NAME=null'.")
    path, value = (part.strip() for part in change.split("=", 1))
    name, _, field = path.partition(".")
    if name not in losses:
        near = get_close_matches(name, losses)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"{_NODE}.LOSSES has {change!r}, but {method} has no such loss, only {', '.join(losses)}{hint}"
        )
    if field:
        try:
            losses.merge_with_dotlist([f"{path}={value}"])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"{_NODE}.LOSSES has {change!r}, which {name} cannot take: {error}") from error
        return None
    if value != "null":
        raise ValueError(f"{_NODE}.LOSSES has {change!r}, expected '{name}.FIELD=value' or '{name}=null'.")
    return name
