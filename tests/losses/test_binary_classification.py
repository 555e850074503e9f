from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2kd.losses.binary_classification import BinaryClassificationKD, binary_classification_kd

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_kd.npz")
PRECISIONS = pytest.mark.parametrize(
    "dtype, suffix, rtol, atol",
    [(torch.float32, "f32", 1e-5, 1e-6), (torch.float64, "f64", 1e-9, 1e-12)],
    ids=["f32", "f64"],
)
# The papers' code divides by avg_factor + float32 eps.
AVG_FACTOR = float(GOLDEN["skd_avg_factor"]) + torch.finfo(torch.float32).eps


def golden_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    names = ("skd_pred", "skd_teacher", "skd_weight")
    student, teacher, weight = (torch.from_numpy(GOLDEN[name]).to(dtype) for name in names)
    return student.requires_grad_(), teacher, weight


def assert_golden(loss: Tensor, student: Tensor, name: str, suffix: str, rtol: float, atol: float) -> None:
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.dtype == grad.dtype == student.dtype
    expected = torch.from_numpy(GOLDEN[f"{name}__out_{suffix}"])
    expected_grad = torch.from_numpy(GOLDEN[f"{name}__grad_{suffix}"])
    torch.testing.assert_close(loss.detach(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=atol)


def restated(student: Tensor, teacher: Tensor, beta: float, dim: int) -> Tensor:
    """The docstring's formula, left to autograd."""
    target = teacher.detach().sigmoid()
    gap = (student.sigmoid() - target).abs()
    bce = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return (gap**beta * bce).sum(dim)


def random_logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(*shape, generator=generator, dtype=dtype) * 3 - 1 for _ in range(2))
    return student.requires_grad_(), teacher


@PRECISIONS
@pytest.mark.parametrize("beta", [1, 2])
def test_golden_bckd(beta, dtype, suffix, rtol, atol):
    student, teacher, weight = golden_inputs(dtype)
    loss = binary_classification_kd(student, teacher, beta=beta)
    assert_golden(loss, student, f"bckd_beta{beta}_none", suffix, rtol, atol)
    total = binary_classification_kd(student, teacher, beta=beta, weight=weight, reduction="sum") / AVG_FACTOR
    assert_golden(total, student, f"bckd_beta{beta}_w_avg", suffix, rtol, atol)


@PRECISIONS
@pytest.mark.parametrize("beta", [1, 2])
def test_golden_crosskd_quality_focal_loss(beta, dtype, suffix, rtol, atol):
    student, teacher, weight = golden_inputs(dtype)
    elements = binary_classification_kd(student[..., None], teacher[..., None], beta=beta)
    assert_golden(elements, student, f"kdqfl_beta{beta}_none", suffix, rtol, atol)
    total = binary_classification_kd(student, teacher, beta=beta, reduction="sum")
    assert_golden(total / student.numel(), student, f"kdqfl_beta{beta}_mean", suffix, rtol, atol)
    total = binary_classification_kd(student, teacher, beta=beta, reduction="sum")
    assert_golden(total / AVG_FACTOR, student, f"kdqfl_beta{beta}_noweight_avg", suffix, rtol, atol)
    total = binary_classification_kd(student, teacher, beta=beta, weight=weight, reduction="sum")
    assert_golden(total / AVG_FACTOR, student, f"kdqfl_beta{beta}_w_avg", suffix, rtol, atol)


def test_bckd_row_from_reference_code():
    student = torch.tensor([[0.0, 1.0, -2.0]], requires_grad=True)
    loss = binary_classification_kd(student, torch.tensor([[1.0, 0.0, -3.0]]))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([0.363987416]), rtol=1e-6, atol=0)
    expected_grad = torch.tensor([[-0.22667487, 0.21328501, 0.0284374]])
    torch.testing.assert_close(student.grad, expected_grad, rtol=1e-5, atol=0)


def test_crosskd_table_from_reference_code():
    student = torch.tensor([[0.5, -1, 2], [-3, 0.25, 1]], requires_grad=True)
    teacher = torch.tensor([[1, -2, 0], [-3, -0.5, 1.5]])
    elements = binary_classification_kd(student[..., None], teacher[..., None])
    expected = torch.tensor([[0.066088, 0.064757, 0.429131], [0, 0.135071, 0.042885]])
    torch.testing.assert_close(elements.detach(), expected, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(elements.sum(), student)
    expected = torch.tensor([[-0.154805, 0.107449, 0.263327], [0, 0.214151, -0.104943]])
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-6)

    def total(**kwargs) -> float:
        return binary_classification_kd(student, teacher, reduction="sum", **kwargs).item()

    assert total() / 2 == pytest.approx(0.368966, abs=1e-6)
    assert total(weight=torch.tensor([1.0, 0.0])) / 2 == pytest.approx(0.279988, abs=1e-6)
    assert total(beta=2) / 2 == pytest.approx(0.104467, abs=1e-6)
    assert total() / 6 == pytest.approx(0.122988, abs=1e-6)


@pytest.mark.parametrize("beta", [0, 0.5, 1, 1.7, 2, 3])
def test_equals_the_formula_left_to_autograd(beta):
    student, teacher = random_logits(3, 4, 6, dtype=torch.float64)
    cotangent = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = binary_classification_kd(student, teacher, beta=beta)
    expected = restated(student, teacher, beta, -1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, student, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, student, cotangent)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=0)


@pytest.mark.parametrize("beta", [0, 0.5, 1, 2])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradcheck(beta, reduction):
    student, teacher = random_logits(2, 3, 4, dtype=torch.float64, seed=2)
    weight = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def kernel(logits: Tensor) -> Tensor:
        return binary_classification_kd(logits, teacher, beta=beta, weight=weight, dim=1, reduction=reduction)

    assert torch.autograd.gradcheck(kernel, (student,))


@pytest.mark.parametrize("channels_last", [False, True])
def test_class_axis_of_the_heads_own_map(channels_last):
    n, anchors, classes, height, width = 2, 3, 5, 4, 6
    head_output, teacher_output = random_logits(n, anchors * classes, height, width)
    if channels_last:
        head_output = head_output.detach().to(memory_format=torch.channels_last).requires_grad_()
        teacher_output = teacher_output.to(memory_format=torch.channels_last)
    shape = (n, anchors, classes, height, width)
    student_map, teacher_map = head_output.view(shape), teacher_output.view(shape)
    weight = torch.rand(n, anchors, height, width, generator=torch.Generator().manual_seed(1))
    loss = binary_classification_kd(student_map, teacher_map, weight=weight, dim=2)
    assert loss.shape == (n, anchors, height, width)
    (grad,) = torch.autograd.grad(loss.sum(), head_output)
    assert grad.stride() == head_output.stride()

    flat_student, flat_teacher = (
        x.detach().permute(0, 3, 4, 1, 2).reshape(n, -1, classes) for x in (student_map, teacher_map)
    )
    flat_student.requires_grad_()
    flat_weight = weight.permute(0, 2, 3, 1).reshape(n, -1)
    flat_loss = binary_classification_kd(flat_student, flat_teacher, weight=flat_weight)
    torch.testing.assert_close(loss.permute(0, 2, 3, 1).reshape(n, -1), flat_loss)
    (flat_grad,) = torch.autograd.grad(flat_loss.sum(), flat_student)
    grad = grad.view(shape).permute(0, 3, 4, 1, 2).reshape(n, -1, classes)
    torch.testing.assert_close(grad, flat_grad)


def test_negative_and_positive_dim_are_one_axis():
    student, teacher = random_logits(2, 3, 4, 5)
    for dim in range(4):
        positive = binary_classification_kd(student, teacher, dim=dim)
        assert torch.equal(positive, binary_classification_kd(student, teacher, dim=dim - 4))
        torch.testing.assert_close(positive, restated(student, teacher, 1, dim))


def test_weight_and_reductions():
    student, teacher = random_logits(2, 6, 5)
    weight = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    per_location = binary_classification_kd(student, teacher)
    assert per_location.shape == (2, 6)
    weighted = binary_classification_kd(student, teacher, weight=weight)
    torch.testing.assert_close(weighted, per_location * weight)
    total = binary_classification_kd(student, teacher, weight=weight, reduction="sum")
    assert total.shape == ()
    torch.testing.assert_close(total, weighted.sum())
    mask = weight > 0.5
    assert torch.equal(binary_classification_kd(student, teacher, weight=mask), per_location * mask)
    double = binary_classification_kd(student, teacher, weight=weight.double())
    assert double.dtype == torch.float32


@pytest.mark.parametrize("beta", [0.01, 0.5, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_logits_give_zero(beta, dtype):
    student, _ = random_logits(4, 7, 33, 41)
    student = torch.cat([student.detach(), torch.full_like(student, 80.0), torch.full_like(student, -80.0)])
    student = student.to(dtype).requires_grad_()
    # The teacher's map is a crop: another memory layout, for which a sigmoid may round differently.
    teacher = torch.zeros(12, 7, 64, 64, dtype=dtype)[:, :, :33, :41]
    teacher.copy_(student.detach())
    loss = binary_classification_kd(student, teacher, beta=beta, dim=1)
    assert torch.count_nonzero(loss) == 0
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.count_nonzero(grad) == 0


@pytest.mark.parametrize("beta", [0, 0.01, 0.5, 1, 2])
def test_saturated_logits_stay_finite(beta):
    values = torch.tensor([-1e4, -120.0, -100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 100.0, 1e4])
    student, teacher = (x.reshape(-1, 1).contiguous() for x in torch.meshgrid(values, values, indexing="ij"))
    student.requires_grad_()
    loss = binary_classification_kd(student, teacher, beta=beta)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all() and torch.isfinite(grad).all()
    expected = restated(student.double(), teacher.double(), beta, -1).float()
    distinct = (student != teacher).flatten()
    # 3e-5: in float32 1 - sigmoid(20) = 2e-9 rounds to zero, and it is multiplied by a logit of up to 1e4.
    torch.testing.assert_close(loss[distinct], expected[distinct], rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("beta", [0, 1])
def test_confident_background_keeps_float32_accuracy(beta):
    """Most locations are background: tiny probabilities, whose entropy 1 + exp(z) would round away."""
    student, teacher = random_logits(5000, 1, dtype=torch.float64)
    student, teacher = (-14 + 10 * x.sigmoid().float() for x in (student.detach(), teacher))
    student.requires_grad_()
    loss = binary_classification_kd(student, teacher, beta=beta)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    exact_student = student.detach().double().requires_grad_()
    exact = restated(exact_student, teacher.double(), beta, -1)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_student)
    # A gap of nearly equal probabilities loses digits by itself.
    apart = (student.detach() - teacher).abs().flatten() > 0.1
    torch.testing.assert_close(loss.detach()[apart], exact.detach().float()[apart], rtol=1e-5, atol=0)
    torch.testing.assert_close(grad[apart], exact_grad.float()[apart], rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_student_is_not_hidden(value):
    student, teacher = random_logits(3, 4)
    student = student.detach()
    student[1, 2] = value
    for other in (teacher, student.detach().clone()):
        loss = binary_classification_kd(student, other)
        assert torch.isfinite(loss).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float32(dtype):
    student, teacher = random_logits(3, 5, 8)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    loss = binary_classification_kd(student, teacher)
    assert loss.dtype == torch.float32
    exact_student = student.detach().float().requires_grad_()
    exact = binary_classification_kd(exact_student, teacher.float())
    assert torch.equal(loss, exact)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_student)
    assert grad.dtype == dtype
    assert torch.equal(grad, exact_grad.to(dtype))


def test_mixed_precision_of_the_two_inputs():
    student, teacher = random_logits(3, 5)
    low = teacher.to(torch.bfloat16)
    assert torch.equal(binary_classification_kd(student, low), binary_classification_kd(student, low.float()))
    assert binary_classification_kd(student, teacher.double()).dtype == torch.float64


@pytest.mark.parametrize("beta", [0, 0.5, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing(beta, dtype):
    student, teacher = random_logits(3, 5, 8)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    weight = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = binary_classification_kd(student, teacher, beta=beta, weight=weight)
            results.append((loss, torch.autograd.grad(loss.sum(), student)[0]))
    (plain, plain_grad), (cast, cast_grad) = results
    assert cast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(plain, cast) and torch.equal(plain_grad, cast_grad)


def test_teacher_gets_no_gradient():
    student, teacher = random_logits(3, 5)
    teacher.requires_grad_()
    binary_classification_kd(student, teacher, reduction="sum").backward()
    assert student.grad is not None and teacher.grad is None
    assert not binary_classification_kd(student.detach(), teacher).requires_grad


def test_no_location_gives_a_connected_zero():
    student = torch.zeros(2, 0, 5, requires_grad=True)
    loss = binary_classification_kd(student, student.detach(), weight=torch.zeros(2, 0), reduction="sum")
    assert loss.item() == 0
    loss.backward()
    assert student.grad.shape == student.shape


def test_a_logarithm_of_full_precision():
    """Against a certain teacher the BCE is softplus(z), which for z < 0 is ln(1 + exp(z))."""
    student = torch.linspace(-30, 0, 100_000)[:, None]
    loss = binary_classification_kd(student, torch.full_like(student, -1e4), beta=0)
    expected = F.softplus(student.squeeze(1).double())
    torch.testing.assert_close(loss.double(), expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_logits": torch.zeros(2, 3, 5)}, r"\(2, 3, 4\) and \(2, 3, 5\)"),
        ({"student_logits": torch.zeros(()), "teacher_logits": torch.zeros(())}, r"shape is \(\), found -1"),
        (
            {"teacher_logits": torch.zeros(2, 3, 4, dtype=torch.int64)},
            "teacher_logits must be floating.*int64",
        ),
        ({"student_logits": torch.zeros(2, 3, 4, dtype=torch.bool)}, "student_logits must be floating.*bool"),
        ({"weight": torch.zeros(2, 3, 1)}, r"expected \(2, 3\), found \(2, 3, 1\)"),
        ({"weight": torch.zeros(2, 3), "dim": 1}, r"expected \(2, 4\), found \(2, 3\)"),
        ({"weight": torch.zeros(2, 3, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
        ({"dim": 3}, "dim must be an axis.*found 3"),
        ({"dim": -4}, "dim must be an axis.*found -4"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    logits = {"student_logits": torch.zeros(2, 3, 4), "teacher_logits": torch.zeros(2, 3, 4)}
    logits.update(kwargs)
    with pytest.raises(ValueError, match=message):
        binary_classification_kd(logits.pop("student_logits"), logits.pop("teacher_logits"), **logits)


@pytest.mark.parametrize("beta", [-1, float("inf"), float("nan"), "1", True])
def test_a_beta_that_means_nothing_is_named(beta):
    with pytest.raises(ValueError, match=f"BinaryClassificationKD.beta is {beta!r}, expected a finite number >= 0"):
        BinaryClassificationKD(beta=beta)
