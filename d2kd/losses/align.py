"""Alignment of a student's activations with the teacher's statistics, before they enter its layers."""

import torch
from torch import Tensor

from d2kd.losses.kernel import check_floating, check_maps, compute_dtype

__all__ = ["align_statistics"]

#: Added to the student's standard deviation, in the unit of the activations.
_EPS = 1e-6


def align_statistics(student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
    """
    Give each channel of the student's tap the mean and standard deviation of the teacher's.

        a = (s - mean(s)) / (std(s) + 1e-6) * std(t) + mean(t)

    per channel, over images and cells jointly, with the unbiased standard deviation.

    Part of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
    2306.11369). The details come from the authors' code, not from the paper's text: the constant is added to the
    student's deviation only, the statistics are of this rank's batch (neither running nor reduced over ranks,
    padding included), and the gradient flows through the student's statistics, as in batch normalisation. The
    ReLU that follows there is left to the caller.

    Where a tap has a single value per channel (N*H*W = 1: a 1x1 level with one image) the deviation does not exist
    and the authors' code gives NaN; here the result is the teacher's mean, with a zero gradient connected to the
    student's tap. A channel that is constant in the student gets the teacher's mean and a large but finite gradient,
    of scale std(t) / 1e-6.

    Args:
        student_tap: (N, C, H, W).
        teacher_tap: (N', C, H', W'); same channels. Other sizes may differ, since only statistics are read.

    Returns:
        The aligned tap, shape of ``student_tap``.

    Raises:
        ValueError: taps that are not four-dimensional, differ in channels or are not floating point.

    Example:
        >>> student, teacher = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([7.0, 7.0, 9.0])
        >>> align_statistics(student.view(1, 1, 1, 3), teacher.view(1, 1, 1, 3)).flatten()
        tensor([6.7938, 7.2302, 8.9760])
    """
    check_maps("align_statistics", student_tap=student_tap, teacher_tap=teacher_tap)
    check_floating("align_statistics", student_tap=student_tap, teacher_tap=teacher_tap)
    if student_tap.shape[1] != teacher_tap.shape[1]:
        raise ValueError(
            f"align_statistics: the taps must have the same channels, found {tuple(student_tap.shape)} and "
            f"{tuple(teacher_tap.shape)}; set model.tap_projector_channels to train a projector between two widths"
        )
    dtype = compute_dtype(student_tap, teacher_tap)
    student, teacher = student_tap.to(dtype), teacher_tap.detach().to(dtype)
    if min(x.shape[0] * x.shape[2] * x.shape[3] for x in (student, teacher)) == 1:
        return student * 0 + teacher.mean(dim=(0, 2, 3), keepdim=True)
    # std, not the root of var: its backward masks a zero deviation, the root's divides by it.
    student_std, student_mean = torch.std_mean(student, dim=(0, 2, 3), correction=1, keepdim=True)
    teacher_std, teacher_mean = torch.std_mean(teacher, dim=(0, 2, 3), correction=1, keepdim=True)
    return (student - student_mean) * (teacher_std / (student_std + _EPS)) + teacher_mean
