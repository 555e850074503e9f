"""The gap-weighted cross entropy with probabilities for targets; its other half is in test_binary_classification."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2kd.losses import binary_classification_kd, gap_weighted_bce

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_qfl.npz")
AVG_FACTOR = float(GOLDEN["qfl_avg_factor"]) + torch.finfo(torch.float32).eps


def restated(logits: Tensor, targets: Tensor, beta: float, dim: int = -1) -> Tensor:
    """The docstring's formula, left to autograd."""
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((logits.sigmoid() - targets).abs() ** beta * bce).sum(dim)


def random_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Half of the targets are zero, as those of background."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, generator=generator, dtype=dtype) * 3 - 1
    targets = torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1
    return logits.requires_grad_(), targets.clamp(min=0)


@pytest.mark.parametrize(
    "dtype, suffix, rtol, atol",
    [(torch.float32, "f32", 1e-5, 1e-6), (torch.float64, "f64", 1e-9, 1e-12)],
    ids=["f32", "f64"],
)
@pytest.mark.parametrize("beta", [1, 2])
def test_golden_quality_focal_loss(beta, dtype, suffix, rtol, atol):
    logits = torch.from_numpy(GOLDEN["qfl_pred"]).to(dtype).requires_grad_()
    weight = torch.from_numpy(GOLDEN["qfl_weight"]).to(dtype)
    label, score = torch.from_numpy(GOLDEN["qfl_label"]), torch.from_numpy(GOLDEN["qfl_score"]).to(dtype)
    classes = logits.shape[1]
    assert logits.abs().max() == 60 and (label == classes).any()  # saturated rows and background are there
    targets = F.one_hot(label, classes + 1)[:, :classes] * score[:, None]

    per_location = gap_weighted_bce(logits, targets, beta=beta)
    total = gap_weighted_bce(logits, targets, beta=beta, weight=weight, reduction="sum")
    for case, loss in (("none", per_location), ("mean", per_location.mean()), ("w_avg", total / AVG_FACTOR)):
        (grad,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert loss.dtype == grad.dtype == dtype
        expected, expected_grad = (
            torch.from_numpy(GOLDEN[f"qfl_beta{beta}_{case}__{what}_{suffix}"]) for what in ("out", "grad")
        )
        torch.testing.assert_close(loss.detach(), expected, rtol=rtol, atol=atol)
        torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=atol)


def test_rows_from_reference_code():
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    loss = gap_weighted_bce(logits, torch.tensor([[0.7, 0.0], [0.0, 0.0]]), beta=2)
    torch.testing.assert_close(loss, torch.tensor([0.02641036, 1.82336485]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0, 0.5, 1, 2, 3])
def test_equals_the_formula_left_to_autograd(beta):
    logits, targets = random_inputs(3, 4, 6, dtype=torch.float64)
    cotangent = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss, expected = gap_weighted_bce(logits, targets, beta=beta, dim=1), restated(logits, targets, beta, 1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, logits, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, logits, cotangent)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=0)


@pytest.mark.parametrize("beta", [0, 1, 2])
def test_gradcheck(beta):
    logits, targets = random_inputs(2, 3, 4, dtype=torch.float64)
    weight = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda z: gap_weighted_bce(z, targets, beta=beta, weight=weight), (logits,))


@pytest.mark.parametrize("beta", [0, 1, 2])
def test_a_teachers_probabilities_are_the_teachers_logits(beta):
    student, _ = random_inputs(5, 7, dtype=torch.float64)
    teacher = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for loss in (
        gap_weighted_bce(student, teacher.sigmoid(), beta=beta),
        binary_classification_kd(student, teacher, beta=beta),
    ):
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), student)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)


def test_low_precision_is_computed_in_float32():
    logits, targets = (x.detach().bfloat16() for x in random_inputs(3, 8))
    loss = gap_weighted_bce(logits, targets, beta=2)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, gap_weighted_bce(logits.float(), targets.float(), beta=2))


def test_targets_get_no_gradient():
    logits, targets = random_inputs(3, 5)
    targets.requires_grad_()
    gap_weighted_bce(logits, targets, beta=2, reduction="sum").backward()
    assert torch.count_nonzero(logits.grad) and targets.grad is None
    assert not gap_weighted_bce(logits.detach(), targets, beta=2).requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["logits", "targets"])
def test_non_finite_input_is_not_hidden(which, value):
    logits, targets = (x.detach().clone() for x in random_inputs(3, 4))
    (logits if which == "logits" else targets)[1, 2] = value
    targets[1, 2] += 0.5  # no product of zero with an infinity
    loss = gap_weighted_bce(logits, targets, beta=2)
    assert torch.isfinite(loss).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"targets": torch.zeros(2, 3)}, r"logits and targets must have the same shape.*\(2, 3, 4\) and \(2, 3\)"),
        ({"targets": torch.zeros(2, 3, 4, dtype=torch.int64)}, "targets must be floating.*int64"),
        ({"weight": torch.zeros(2, 4)}, r"weight.*expected \(2, 3\), found \(2, 4\)"),
        ({"weight": torch.zeros(2, 3, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
        ({"dim": 3}, "dim must be an axis.*found 3"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"logits": torch.zeros(2, 3, 4), "targets": torch.zeros(2, 3, 4), "beta": 2, **kwargs}
    with pytest.raises(ValueError, match=f"gap_weighted_bce: {message}"):
        gap_weighted_bce(arguments.pop("logits"), arguments.pop("targets"), **arguments)
