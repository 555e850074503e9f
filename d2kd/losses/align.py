"""Alignment of a student's activations with the teacher's statistics, before they enter its layers."""

import torch
from torch import Tensor

__all__ = ["align_statistics"]


def align_statistics(student_tap: Tensor, teacher_tap: Tensor, *, eps: float = 1e-6) -> Tensor:
    """
    Give each channel of the student's tap the mean and standard deviation of the teacher's.

        a = (s - mean(s)) / (std(s) + eps) * std(t) + mean(t)

    per channel, over images and cells jointly, with the unbiased standard deviation.

    Part of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
    2306.11369). The details come from the authors' code, not from the paper's text: eps added to the
    student's deviation only, statistics of this rank's batch (neither running nor reduced over ranks,
    padding included), and the gradient through the student's statistics, as in batch normalisation. The
    ReLU that follows there is the caller's.

    The teacher is detached. Where a tap has a single value per channel (N*H*W = 1: a 1x1 level with one
    image) the deviation does not exist and the authors' code gives NaN; here the result is the teacher's
    mean, with a zero gradient connected to the student's tap. A channel that is constant in the student
    gets the teacher's mean and a large but finite gradient, of scale std(t) / eps.

    Computed in float32 whatever the input dtype or autocast (float64 stays float64).

    Args:
        student_tap: (N, C, H, W).
        teacher_tap: (N', C, H', W'); same channels. Other sizes may differ, since only statistics are read.
        eps: added to the student's standard deviation, in the unit of the activations, > 0.

    Returns:
        The aligned tap, shape of ``student_tap``; float32, or float64 if an input is float64.

    Raises:
        ValueError: taps that are not four-dimensional, differ in channels or are not floating point,
            ``eps`` <= 0.
    """
    _check_inputs(student_tap, teacher_tap, eps)
    dtype = torch.promote_types(torch.promote_types(student_tap.dtype, teacher_tap.dtype), torch.float32)
    student = student_tap.to(dtype)
    teacher = teacher_tap.detach().to(dtype)

    if min(_values_per_channel(student), _values_per_channel(teacher)) == 1:
        return student * 0 + teacher.mean(dim=(0, 2, 3), keepdim=True)
    # std, not the root of var: its backward masks a zero deviation, the root's divides by it.
    student_std, student_mean = torch.std_mean(student, dim=(0, 2, 3), correction=1, keepdim=True)
    teacher_std, teacher_mean = torch.std_mean(teacher, dim=(0, 2, 3), correction=1, keepdim=True)
    return (student - student_mean) * (teacher_std / (student_std + eps)) + teacher_mean


def _values_per_channel(tap: Tensor) -> int:
    return tap.shape[0] * tap.shape[2] * tap.shape[3]


def _check_inputs(student: Tensor, teacher: Tensor, eps: float) -> None:
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[1] != teacher.shape[1]:
        raise ValueError(
            "align_statistics: the taps must be (N, C, H, W) with the same C, found "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; another width needs a projector first"
        )
    for name, tap in (("student_tap", student), ("teacher_tap", teacher)):
        if not tap.is_floating_point():
            raise ValueError(f"align_statistics: {name} must be floating point, found {tap.dtype}")
    if not eps > 0:
        raise ValueError(f"align_statistics: eps must be > 0, found {eps}")
