"""Devices and precisions that are not there."""

from __future__ import annotations

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES"]


def train(text: str, says: str) -> BadInput:
    return BadInput("Device", f"`{text}`", lambda folder: ["train", "--config-file", write_run(folder), text], says)


def command(given: str, arguments: str, says: str) -> BadInput:
    return BadInput("Device", given, lambda folder: [write_run(folder), *arguments.split()][1:], says)


CASES = [
    train(
        "train.device=cuda", "d2kd train: train.device is 'cuda', but torch sees no GPU: set train.device=auto or =cpu."
    ),
    train(
        "train.device=cuda:1",
        "d2kd train: train.device is 'cuda:1', expected 'auto', 'cuda' or 'cpu' (CUDA_VISIBLE_DEVICES picks a GPU).",
    ),
    train(
        "train.device=gpu",
        "d2kd train: train.device is 'gpu', expected 'auto', 'cuda' or 'cpu' (CUDA_VISIBLE_DEVICES picks a GPU).",
    ),
    train(
        "train.device=xpu",
        "d2kd train: train.device is 'xpu', expected 'auto', 'cuda' or 'cpu' (CUDA_VISIBLE_DEVICES picks a GPU).",
    ),
    train(
        "train.device=null",
        "d2kd train: train.device is None, expected 'auto', 'cuda' or 'cpu' (CUDA_VISIBLE_DEVICES picks a GPU).",
    ),
    train(
        "train.amp.enabled=True",
        "d2kd train: train.amp.dtype=float16 needs a GPU, but training runs on the CPU: set "
        "train.amp.dtype=bfloat16 or train.amp.enabled=False.",
    ),
    train(
        "train.amp.enabled=yes",
        "d2kd train: The override 'train.amp.enabled=yes' makes train.amp.enabled 'yes', expected true "
        "or false, such as its present value False (+key=value sets it all the same).",
    ),
    train("train.amp.dtype=half", "d2kd train: train.amp.dtype is 'half', expected one of float16, bfloat16."),
    train(
        "model.teacher.precision=fp8",
        "d2kd train: model.teacher.precision is 'fp8', expected one of 'fp32', 'bf16', 'fp16' (in a yacs "
        "config: MODEL.DISTILLATION.TEACHER_PRECISION).",
    ),
    train(
        "model.teacher.engine=tensorrt",
        "d2kd train: model.teacher.engine is 'tensorrt', expected one of 'eager', 'folded', 'compile' "
        "(in a yacs config: MODEL.DISTILLATION.TEACHER_ENGINE).",
    ),
    command(
        "`d2kd check --device` without a GPU",
        "check --device",
        "d2kd check: no CUDA device was found, expected a GPU that torch can use: look at nvidia-smi and "
        "at torch.version.cuda, or try the check itself with --device cpu.",
    ),
    command(
        "`d2kd check --device` of an unknown one",
        "check --device tpu",
        "d2kd check: argument --device: tpu is none of cuda, cpu (d2kd check --help).",
    ),
    command(
        "`d2kd benchmark --device cuda` without a GPU",
        "benchmark --device cuda",
        "d2kd benchmark: --device is cuda, but torch finds no CUDA device here: use cpu, or a CUDA build "
        "of torch (d2kd benchmark --help).",
    ),
    command(
        "`d2kd compare` on a GPU that is not there",
        "compare --config-file mine.py train.device=cuda",
        "d2kd compare: train.device is 'cuda', but torch sees no GPU: set train.device=auto or =cpu.",
    ),
]
