from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from d2kd.losses import temperature_kl

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_kl.npz")
AVG_FACTOR = float(GOLDEN["kl_avg_factor"]) + torch.finfo(torch.float32).eps
LOSS_WEIGHT = 0.25
BIN_REDUCTIONS = pytest.mark.parametrize("bin_reduction", ["mean", "sum"])


def restated(student: Tensor, teacher: Tensor, temperature: float, bin_reduction: str, dim: int = -1) -> Tensor:
    """The docstring's formula, left to autograd."""
    p = (teacher.detach() / temperature).softmax(dim)
    q = (student / temperature).softmax(dim)
    return temperature**2 * getattr(p * (p.log() - q.log()), bin_reduction)(dim)


def random_logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(*shape, generator=generator, dtype=dtype) * 3 for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize(
    "dtype, rtol, atol", [(torch.float32, 1e-5, 1e-6), (torch.float64, 1e-9, 1e-12)], ids=["f32", "f64"]
)
@BIN_REDUCTIONS
@pytest.mark.parametrize("temperature", [1, 2, 4, 10])
def test_golden(temperature, bin_reduction, dtype, rtol, atol):
    """Both precisions against the float64 run: at equal logits the reference's float32 run is 2e-6 from zero."""
    student, teacher, weight = (torch.from_numpy(GOLDEN[f"kl_{n}"]).to(dtype) for n in ("pred", "soft", "weight"))
    student.requires_grad_()
    per_location = LOSS_WEIGHT * temperature_kl(student, teacher, temperature=temperature, bin_reduction=bin_reduction)
    for case, loss in (("none", per_location), ("w_avg", (per_location * weight).sum() / AVG_FACTOR)):
        (grad,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
        assert loss.dtype == grad.dtype == dtype
        name = f"kl_{bin_reduction}_T{temperature}_{case}"
        expected, expected_grad = (torch.from_numpy(GOLDEN[f"{name}__{what}_f64"]) for what in ("out", "grad"))
        torch.testing.assert_close(loss.detach(), expected.to(dtype), rtol=rtol, atol=atol)
        torch.testing.assert_close(grad, expected_grad.to(dtype), rtol=rtol, atol=atol)


def test_rows_from_reference_code():
    n = torch.arange(17.0, dtype=torch.float64)
    student, teacher = 2 * torch.sin(0.3 * n), 3 * torch.cos(0.2 * n)
    assert temperature_kl(student, teacher, temperature=10).item() == pytest.approx(0.06423619, rel=1e-5)
    assert temperature_kl(student, teacher, temperature=2).item() == pytest.approx(0.06762805, rel=1e-5)
    student, teacher = torch.tensor([[0.5, -1, 2], [-3, 0.25, 1]]), torch.tensor([[1, -2, 0], [-3, -0.5, 1.5]])
    for temperature, expected in ((1, [0.690880, 0.110164]), (2, [4 * 0.168008, 4 * 0.038839])):
        loss = temperature_kl(student, teacher, temperature=temperature, bin_reduction="sum")
        torch.testing.assert_close(loss, torch.tensor(expected), rtol=0, atol=4e-6)


@BIN_REDUCTIONS
@pytest.mark.parametrize("temperature", [0.5, 1, 3.7, 10])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_equals_the_formula_left_to_autograd(dim, temperature, bin_reduction):
    student, teacher = random_logits(4, 5, 6, dtype=torch.float64)
    loss = temperature_kl(student, teacher, temperature=temperature, bin_reduction=bin_reduction, dim=dim)
    expected = restated(student, teacher, temperature, bin_reduction, dim)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14)
    cotangent = torch.randn(loss.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(loss, student, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, student, cotangent)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


@BIN_REDUCTIONS
def test_gradcheck(bin_reduction):
    student, teacher = random_logits(2, 5, 3, dtype=torch.float64)

    def kernel(logits: Tensor) -> Tensor:
        return temperature_kl(logits, teacher, temperature=2.5, bin_reduction=bin_reduction, dim=1)

    assert torch.autograd.gradcheck(kernel, (student,))


def test_mean_is_the_divergence_over_the_number_of_bins():
    student, teacher = random_logits(7, 17)
    mean, total = (temperature_kl(student, teacher, temperature=10, bin_reduction=r) for r in ("mean", "sum"))
    torch.testing.assert_close(mean * 17, total)
    assert torch.equal(temperature_kl(student, teacher, temperature=10), mean)


def test_gradient_keeps_its_scale_when_the_temperature_changes():
    """For a high temperature T^2 KL tends to half the variance of the logits' difference, over B."""
    student, teacher = random_logits(6, 17, dtype=torch.float64)
    loss = temperature_kl(student, teacher, temperature=1e4)
    expected = (student - teacher).var(dim=-1, correction=0) / 2 / 17
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def test_a_shift_of_all_bins_changes_nothing():
    student, teacher = random_logits(6, 17, dtype=torch.float64)
    shift = torch.linspace(-30, 30, 6, dtype=torch.float64)[:, None]
    plain = temperature_kl(student, teacher, temperature=2)
    torch.testing.assert_close(temperature_kl(student + shift, teacher, temperature=2), plain, rtol=1e-10, atol=0)
    torch.testing.assert_close(temperature_kl(student, teacher - shift, temperature=2), plain, rtol=1e-10, atol=0)


def test_is_positive_and_zero_for_equal_logits():
    student, teacher = random_logits(500, 17)
    assert (temperature_kl(student, teacher, temperature=1) > 0).all()
    loss = temperature_kl(student, student.detach().clone(), temperature=1)
    assert torch.count_nonzero(loss) == 0
    assert torch.count_nonzero(torch.autograd.grad(loss.sum(), student)[0]) == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_bins_of_the_heads_own_map(channels_last):
    """A view of the head's output and a teacher's crop; nothing is copied: the gradient has the output's layout."""
    n, anchors, bins, height, width = 2, 3, 5, 4, 6
    head_output, _ = random_logits(n, anchors * 4 * bins, height, width)
    teacher_output, _ = random_logits(n, anchors * 4 * bins, height + 2, width + 1, seed=1)
    if channels_last:
        head_output = head_output.detach().to(memory_format=torch.channels_last).requires_grad_()
    student_map = head_output.view(n, anchors, 4, bins, height, width)
    teacher_map = teacher_output.detach().view(n, anchors, 4, bins, height + 2, width + 1)[..., :height, :width]
    loss = temperature_kl(student_map, teacher_map, temperature=2, dim=3)
    assert loss.shape == (n, anchors, 4, height, width)
    of_locations = temperature_kl(student_map, teacher_map, temperature=2 * torch.ones(n, 1, 4, 1, 1, width), dim=3)
    torch.testing.assert_close(of_locations, loss)
    assert torch.autograd.grad(of_locations.sum(), head_output)[0].stride() == head_output.stride()
    (grad,) = torch.autograd.grad(loss.sum(), head_output)
    assert grad.stride() == head_output.stride()

    student_rows, teacher_rows = (x.detach().movedim(3, -1).reshape(-1, bins) for x in (student_map, teacher_map))
    student_rows.requires_grad_()
    rows = temperature_kl(student_rows, teacher_rows, temperature=2)
    torch.testing.assert_close(loss.flatten(), rows)
    (row_grad,) = torch.autograd.grad(rows.sum(), student_rows)
    torch.testing.assert_close(grad.view_as(student_map).movedim(3, -1).reshape(-1, bins), row_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_one_map_and_writes_on_none(dtype):
    """Not on the kept one either: a second backward pass gives the same."""
    student, teacher = (x.detach().to(dtype) for x in random_logits(2, 17, 4, 6))
    student.requires_grad_()
    before = student.detach().clone(), teacher.clone()
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = temperature_kl(student, teacher, temperature=1, dim=1)
        assert not temperature_kl(student.detach(), teacher, temperature=1, dim=1).requires_grad
    assert [x.shape for x in saved] == [student.shape]
    grads = [torch.autograd.grad(loss, student, torch.ones_like(loss), retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads) and grads[0].any()
    assert torch.equal(student.detach(), before[0]) and torch.equal(teacher, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float32(dtype):
    student, teacher = (x.detach().to(dtype) for x in random_logits(3, 8))
    student.requires_grad_()
    loss = temperature_kl(student, teacher, temperature=3)
    exact_student = student.detach().float().requires_grad_()
    exact = temperature_kl(exact_student, teacher.float(), temperature=3)
    assert loss.dtype == torch.float32 and torch.equal(loss, exact)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert grad.dtype == dtype
    assert torch.equal(grad, torch.autograd.grad(exact.sum(), exact_student)[0].to(dtype))
    assert temperature_kl(student, teacher.double(), temperature=3).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    student, teacher = (x.detach().to(dtype) for x in random_logits(3, 5, 8))
    student.requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = temperature_kl(student, teacher, temperature=2, dim=1)
            results.append((loss, torch.autograd.grad(loss.sum(), student)[0]))
    (plain, plain_grad), (cast, cast_grad) = results
    assert cast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(plain, cast) and torch.equal(plain_grad, cast_grad)


def test_saturated_logits_stay_finite_and_accurate():
    student, teacher = random_logits(50, 17, dtype=torch.float64)
    student, teacher = (student.detach() * 400).float().requires_grad_(), (teacher * 400).float()
    loss = temperature_kl(student, teacher, temperature=1)
    exact = temperature_kl(student.double(), teacher.double(), temperature=1).float()
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
def test_non_finite_logits_are_not_hidden(which, value):
    student, teacher = (x.detach().clone() for x in random_logits(3, 5))
    for name, logits in (("student", student), ("teacher", teacher)):
        if which in (name, "both"):
            logits[1, 2] = value
    loss = temperature_kl(student, teacher, temperature=10)
    assert torch.isfinite(loss).tolist() == [True, False, True]


def test_teacher_gets_no_gradient():
    student, teacher = random_logits(3, 5)
    teacher.requires_grad_()
    temperature_kl(student, teacher, temperature=1).sum().backward()
    assert torch.count_nonzero(student.grad) and teacher.grad is None
    assert not temperature_kl(student.detach(), teacher, temperature=1).requires_grad


def test_no_location_gives_a_connected_zero():
    student = torch.zeros(2, 0, 5, requires_grad=True)
    loss = temperature_kl(student, student.detach(), temperature=1).sum()
    assert loss.item() == 0
    loss.backward()
    assert student.grad.shape == student.shape


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_logits": torch.zeros(2, 5)}, r"\(2, 4\) and \(2, 5\)"),
        ({"student_logits": torch.zeros(()), "teacher_logits": torch.zeros(())}, r"dim must be an axis .* \(\), found"),
        (
            {"student_logits": torch.zeros(2, 0), "teacher_logits": torch.zeros(2, 0)},
            r"axis -1 must not be empty.*\(2, 0\)",
        ),
        ({"teacher_logits": torch.zeros(2, 4, dtype=torch.int64)}, "teacher_logits must be floating.*int64"),
        ({"student_logits": torch.zeros(2, 4, dtype=torch.bool)}, "student_logits must be floating.*bool"),
        ({"temperature": torch.ones(2, 4)}, r"temperature must broadcast to \(2, 1\),.* found \(2, 4\)"),
        ({"temperature": torch.ones(1, 2, 1)}, r"temperature must broadcast to \(2, 1\),.* found \(1, 2, 1\)"),
        ({"temperature": torch.ones(3, 1)}, r"temperature must broadcast.* found \(3, 1\)"),
        ({"temperature": torch.ones(2, 1, dtype=torch.int64)}, "temperature must be floating.*int64"),
        ({"temperature": torch.ones(2)}, r"temperature must broadcast.* found \(2,\)"),
        ({"weight": torch.ones(2, 1)}, r"weight must be .* expected \(2,\), found \(2, 1\)"),
        ({"weight": torch.ones(2, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, 'reduction must be "none" or "sum", found \'mean\''),
        ({"dim": 2}, "dim must be an axis.*found 2"),
        ({"dim": -3}, "dim must be an axis.*found -3"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student_logits": torch.zeros(2, 4), "teacher_logits": torch.zeros(2, 4), "temperature": 1.0}
    with pytest.raises(ValueError, match=f"temperature_kl: .*{message}"):
        temperature_kl(**{**arguments, **kwargs})


def test_an_unknown_bin_reduction_is_no_sum():
    with pytest.raises(KeyError, match="max"):
        temperature_kl(torch.zeros(2, 4), torch.zeros(2, 4), temperature=1.0, bin_reduction="max")


def test_weight_and_reductions():
    student, teacher = random_logits(3, 5, 4)
    weight = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    locations = temperature_kl(student, teacher, temperature=2.0, dim=1)
    weighted = temperature_kl(student, teacher, temperature=2.0, weight=weight, dim=1)
    torch.testing.assert_close(weighted, weight * locations)
    total = temperature_kl(student, teacher, temperature=2.0, weight=weight, dim=1, reduction="sum")
    torch.testing.assert_close(total, (weight * locations).sum())
