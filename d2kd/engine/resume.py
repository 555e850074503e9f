"""Going on with a run: what of its config has changed since, and whether its checkpoint has this run's parameters."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2kd.checkpoint import UNTRAINED, Misfit, MisfitError, first_of, whole_file
from d2kd.engine.defaults import ConfigError
from d2kd.engine.run_folder import run_files

__all__ = [
    "ResumeError",
    "check_parameters",
    "check_same_start",
    "differences",
    "kept_hyperparameters",
    "kept_record",
    "parameter_names",
    "say_what_fits",
    "write_record",
]

logger = logging.getLogger(f"detectron2.{__name__}")  # which any script that trains sets up

#: A run that goes on is in the same folder, and does not read its first weights.
_IRRELEVANT = re.compile(r"train\.(output_dir|init_checkpoint)$")

WAYS_OUT = (
    "restore the config that the run was trained with (config.yaml of train.output_dir), or start anew from its "
    "weights: without --resume, with train.init_checkpoint=CHECKPOINT and another train.output_dir."
)


class ResumeError(ConfigError):
    """A checkpoint that this run cannot go on from."""


@contextmanager
def kept_record(path: Path) -> Iterator[str | None]:
    """
    What a folder's config.yaml says of the run that was trained there; written back on leaving if it is still true:
    where that run's checkpoints and metrics are as they were.

    Yields:
        its text; None: there is none.
    """
    before, files = path.read_text() if path.is_file() else None, _states(path.parent)
    try:
        yield before
    finally:
        if before is not None and files and _states(path.parent) == files:
            write_record(path, before)


def write_record(path: Path, text: str) -> None:
    """Write a run's config.yaml, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text)


def check_same_start(iteration: int, output_dir: str) -> None:
    """
    Every rank calls it with the first iteration to come.

    Raises:
        ResumeError: the ranks differ in it, since they see different checkpoints.
    """
    starts = comm.all_gather(iteration)
    if len(set(starts)) > 1:
        rank = next(rank for rank, start in enumerate(starts) if start != starts[0])
        raise ResumeError(
            f"--resume: in train.output_dir={output_dir} rank 0 finds a checkpoint after {starts[0]} iterations, rank "
            f"{rank} after {starts[rank]} (0: none), expected the same: give all machines one folder, or copy the "
            "newest checkpoint and last_checkpoint to each."
        )


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in run_files(folder)}


def differences(before: str, after: str) -> list[str]:
    """
    "KEY was VALUE, is VALUE" for each key that differs.

    Args:
        before, after: config.yaml of the run, as ``LazyConfig.save`` wrote it.
    """
    return list(_differences(yaml.compose(before), yaml.compose(after), ""))


def _differences(before: yaml.Node | None, after: yaml.Node | None, path: str) -> Iterator[str]:
    if isinstance(before, yaml.MappingNode) and isinstance(after, yaml.MappingNode):
        ours, theirs = ({key.value: value for key, value in node.value} for node in (before, after))
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            yield from _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
    elif (
        isinstance(before, yaml.SequenceNode)
        and isinstance(after, yaml.SequenceNode)
        and len(before.value) == len(after.value)
    ):
        for index, pair in enumerate(zip(before.value, after.value)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif not _IRRELEVANT.match(path) and _text(before) != _text(after):
        yield f"{path} was {_short(before)}, is {_short(after)}"


def _text(node: yaml.Node | None) -> str | None:
    return None if node is None else yaml.serialize(node)


def _short(node: yaml.Node | None) -> str:
    if node is None:
        return "not set"
    if isinstance(node, yaml.MappingNode):
        return f"{{{', '.join(str(key.value) for key, _ in node.value)}}}"
    text = node.value if isinstance(node, yaml.ScalarNode) else " ".join(yaml.serialize(node).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters in each of the optimizer's groups."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names.get(p, "?") for p in group["params"]] for group in optimizer.param_groups]


def check_parameters(saved: Mapping[str, Any], names: Sequence[Sequence[str]]) -> None:
    """
    See that a checkpoint's optimizer has the parameters that this run trains.

    Args:
        saved: the trainer's part of the checkpoint: "optimizer" and, if d2kd wrote it, "parameters".
        names: :func:`parameter_names`.

    Raises:
        ResumeError: it has not; the parameters are named.
    """
    if "parameters" in saved:
        if saved["parameters"] == list(map(list, names)):
            return
        before, now = ([name for group in groups for name in group] for groups in (saved["parameters"], names))
        gone, added = [x for x in before if x not in now], [x for x in now if x not in before]
        parts = [
            f"{len(found)} {what} ({first_of(found)})"
            for what, found in (("that it does not train", gone), ("that the checkpoint has no state of", added))
            if found
        ]
        found = " and ".join(parts) or "the same ones in other groups (optimizer.params)"
    else:
        before_sizes = [len(group["params"]) for group in saved["optimizer"]["param_groups"]]
        sizes = [len(group) for group in names]
        if before_sizes == sizes:
            return
        found = f"groups of {before_sizes} parameters, where this run has {sizes}"
    raise ResumeError(
        f"--resume cannot go on: the checkpoint's optimizer has other parameters than this run, {found}. Either "
        f"{WAYS_OUT}"
    )


@contextmanager
def kept_hyperparameters(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimizer's state is loaded; its learning rates, decays and so on stay those of this run's config."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    yield
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
        if "initial_lr" in group:  # what a schedule multiplies
            group["initial_lr"] = values.get("initial_lr", values["lr"])


def say_what_fits(misfit: Misfit, model: nn.Module, path: str, goes_on: bool) -> None:
    """
    Raises:
        ResumeError: the last checkpoint of a run that goes on does not fit.
        MisfitError: the first weights of a run have none of the model's.
    """
    if goes_on:
        if misfit:
            raise ResumeError(
                f"--resume cannot go on: the checkpoint is of another model ({misfit}). Either {WAYS_OUT}"
            )
        return
    total = sum(not UNTRAINED.search(key) for key in model.state_dict())
    lacking = len(misfit.missing) + len(misfit.mismatched)
    if lacking == total:
        raise MisfitError(f"train.init_checkpoint={path} has none of the model's {total} weights: {misfit}.")
    logger.info("%d of the model's %d weights are those of train.init_checkpoint=%s", total - lacking, total, path)
    if misfit:
        logger.warning("The other weights begin as they were made, or are not of this model: %s", misfit)
