"""
Run a step again that was not finite, from the file that training saved, and say what makes it so: the labels, the
teacher, the weights, or one term's value or gradient.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2kd.config import load_config
from d2kd.config.nodes import made
from d2kd.engine.defaults import amp_dtype, resolve_device
from d2kd.engine.failed_step import FailedStep, load_failed_step
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.non_finite import StepEvidence, label_faults

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replay", metavar="FILE", help="run a step again that was not finite: OUTPUT_DIR/non_finite_iterN_rankR.pth"
    )


def run(args: argparse.Namespace) -> int:
    """
    Args:
        args: ``replay``, the file; ``config_file`` and ``overrides``, those of the run.

    Returns:
        1 if the step is not finite here either, else 0.

    Raises:
        FileNotFoundError, ValueError: the file or the config cannot be read, or the weights are not the model's.
    """
    step = load_failed_step(args.replay)
    cfg = load_config(args.config_file, args.overrides)
    device = resolve_device(cfg.train.device)
    model = made(cfg.model, "model")
    if isinstance(model, DistilledDetector):
        model.load_teacher()
    model = model.to(device).train()
    ours, theirs = ({name: x.shape for name, x in state.items()} for state in (model.state_dict(), step.weights))
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if differing:
        raise ValueError(
            f"{args.replay} has weights of another model than {args.config_file}: {len(differing)} differ (first "
            f"{differing[0]!r}), so give the config of the run, train.output_dir/config.yaml."
        )
    model.load_state_dict(step.weights)
    print(f"{args.replay}: iteration {step.iteration}, rank {step.rank}, {len(step.batch)} images")
    print(f"training said: {step.error}")
    faults = label_faults(step.batch)
    print(f"labels: {'; '.join(faults) if faults else 'boxes are finite and have an area'}")
    dtype = amp_dtype(cfg.train.amp)
    losses, found = _losses(model, step, torch.autocast(device.type, dtype=dtype, enabled=dtype is not None))
    lines = [found] if found else _terms(model, losses)
    print(*lines, sep="\n")
    broken = bool(found) or any("not finite" in line for line in lines)
    if not broken and not faults:
        print(
            "verdict: this step is finite here, in its values and its gradients. What differed then: the device, the "
            "other ranks, or random numbers; lower the learning rate (optimizer.lr) or train without fp16."
        )
    elif not broken:
        print(f"verdict: finite here, but {faults[0]}: correct or drop it first.")
    elif not found:
        evidence = StepEvidence(step.batch, step.iteration, model)
        print(f"verdict: the values are finite and a gradient is not; {evidence.cause()}")
    return 1 if broken else 0


def _losses(
    model: nn.Module, step: FailedStep, autocast: contextlib.AbstractContextManager[object]
) -> tuple[Mapping[str, Tensor], str]:
    """The step's losses, or the sentence in which it fails."""
    try:
        with EventStorage(step.iteration), autocast:
            return model(step.batch), ""
    except FloatingPointError as error:
        return {}, f"verdict: {error}"


def _terms(model: nn.Module, losses: Mapping[str, Tensor]) -> list[str]:
    """A line for each loss: its value, and whether its gradient is finite."""
    parameters = {name: x for name, x in model.named_parameters() if x.requires_grad}
    lines = []
    for name, loss in losses.items():
        state = "no gradient"
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            bad = [key for key, x in zip(parameters, grads) if x is not None and not x.isfinite().all()]
            state = f"gradient not finite in {len(bad)} parameters, first {bad[0]!r}" if bad else "gradient finite"
        value = f"{loss.item():.6g}" if loss.isfinite() else f"{loss.item()} (not finite)"
        lines.append(f"{name:32} {value:>14}   {state}")
    return lines
