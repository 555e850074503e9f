from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from d2kd.losses.iou_localization import iou_localization_kd, iou_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_box.npz")
AVG_FACTOR = float(GOLDEN["box_avg_factor"]) + torch.finfo(torch.float32).eps
IOU_TYPES = pytest.mark.parametrize("iou_type", ["giou", "iou", "neg_log_iou"])


def random_boxes(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs that overlap, so that no loss is flat."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for _ in range(2):
        center, size = (torch.rand(*shape, 2, generator=generator, dtype=dtype) for _ in range(2))
        center, size = 50 + 10 * center, 20 + 60 * size
        boxes.append(torch.cat([center - size / 2, center + size / 2], dim=-1))
    return boxes[0].requires_grad_(), boxes[1]


def restated(student: list[float], teacher: list[float], iou_type: str, eps: float = 1e-6) -> float:
    """The docstring's formula for one pair of valid boxes, in plain Python."""
    (sx1, sy1, sx2, sy2), (tx1, ty1, tx2, ty2) = student, teacher
    overlap = max(min(sx2, tx2) - max(sx1, tx1), 0) * max(min(sy2, ty2) - max(sy1, ty1), 0)
    union = max((sx2 - sx1) * (sy2 - sy1) + (tx2 - tx1) * (ty2 - ty1) - overlap, eps)
    enclosure = max((max(sx2, tx2) - min(sx1, tx1)) * (max(sy2, ty2) - min(sy1, ty1)), eps)
    if iou_type == "giou":
        return 1 - overlap / union + (enclosure - union) / enclosure
    iou = max(overlap / union, eps)
    return 1 - iou if iou_type == "iou" else -float(np.log(iou))


@pytest.mark.parametrize(
    "dtype, suffix, rtol, atol",
    [(torch.float32, "f32", 1e-5, 1e-6), (torch.float64, "f64", 1e-9, 1e-12)],
    ids=["f32", "f64"],
)
@pytest.mark.parametrize(
    "iou_type, name, scale",
    [("giou", "giou", 2.0), ("iou", "iou_linear", 1.0), ("neg_log_iou", "iou_log", 1.0)],
)
def test_golden(iou_type, name, scale, dtype, suffix, rtol, atol):
    names = ("box_pred", "box_target", "box_weight")
    student, teacher, weight = (torch.from_numpy(GOLDEN[n]).to(dtype) for n in names)
    student.requires_grad_()
    per_location = iou_localization_kd(student, teacher, iou_type=iou_type)
    total = iou_localization_kd(student, teacher, iou_type=iou_type, weight=weight, reduction="sum")
    for case, loss in (("none", per_location * scale), ("w_avg", total / AVG_FACTOR * scale)):
        (grad,) = torch.autograd.grad(loss.sum(), student)
        assert loss.dtype == grad.dtype == dtype
        expected, expected_grad = (
            torch.from_numpy(GOLDEN[f"{name}_{case}__{what}_{suffix}"]) for what in ("out", "grad")
        )
        torch.testing.assert_close(loss.detach(), expected, rtol=rtol, atol=atol)
        torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=atol)


def test_pairs_from_reference_code():
    student = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9], [3, 4, 8, 9], [0, 0, 10, 10]])
    teacher = torch.tensor([[2.0, 0, 12, 10], [20, 20, 30, 30], [3, 4, 8, 9], [5, 5, 25, 15]])
    giou = iou_localization_kd(student, teacher)
    torch.testing.assert_close(giou, torch.tensor([0.333333, 1.8144, 0, 1.17575765]), rtol=0, atol=1e-6)
    neg_log_iou = iou_localization_kd(student, teacher, iou_type="neg_log_iou")
    torch.testing.assert_close(neg_log_iou[:3], torch.tensor([0.405465, 13.815511, 0]), rtol=0, atol=1e-6)
    iou = iou_localization_kd(student, teacher, iou_type="iou")
    torch.testing.assert_close(1 - iou[3], torch.tensor(0.09090909), rtol=0, atol=1e-6)
    torch.testing.assert_close(iou[1], torch.tensor(0.999999), rtol=0, atol=1e-7)


@IOU_TYPES
def test_equals_the_formula_in_plain_python(iou_type):
    student, teacher = random_boxes(50, dtype=torch.float64)
    teacher[25:] += 60
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = torch.tensor([restated(s, t, iou_type) for s, t in pairs], dtype=torch.float64)
    loss = iou_localization_kd(student, teacher, iou_type=iou_type)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=1e-12)


@IOU_TYPES
@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_plain_formula(iou_type, maps, dtype):
    """Values and gradients, also where coordinates are equal, boxes touch, have no area or are turned inside out."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1, 3, 4], dtype=dtype)] * 4)
    student, teacher = (corners[:, None].expand(-1, len(corners), -1), corners.expand(len(corners), -1, -1))
    if maps:
        student, teacher = (x.movedim(-1, 0).contiguous().movedim(0, -1) for x in (student, teacher))
    boxes = [student.detach().requires_grad_() for _ in range(2)]
    losses = [kernel(x, teacher, iou_type=iou_type) for kernel, x in zip((iou_localization_kd, iou_loss), boxes)]
    assert torch.equal(*losses)
    cotangent = torch.rand(losses[0].shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        grads = [torch.autograd.grad(x, y, cotangent, retain_graph=True)[0] for x, y in zip(losses, boxes)]
        tolerance = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


def test_keeps_one_map_for_the_backward_pass():
    student, teacher = random_boxes(2, 3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        iou_localization_kd(student, teacher)
        assert not iou_localization_kd(student.detach(), teacher).requires_grad
    assert [x.shape for x in saved] == [student.shape]


@IOU_TYPES
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradcheck(iou_type, reduction):
    student, teacher = random_boxes(2, 5, dtype=torch.float64)
    weight = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def kernel(boxes: Tensor) -> Tensor:
        return iou_localization_kd(boxes, teacher, iou_type=iou_type, weight=weight, reduction=reduction)

    assert torch.autograd.gradcheck(kernel, (student,))


@IOU_TYPES
@pytest.mark.parametrize("overlap", [1e-3, 1e-5, 1e-7, 1e-9])
def test_hardly_any_overlap_has_the_gradient_of_the_clamped_formula(iou_type, overlap):
    """IoU is clamped at 1e-6: below, a detector learns nothing of how little it is."""
    boxes = torch.tensor([[0.0, 0, 100, 100]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[100 - 200 * overlap, 0, 200, 100]], dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(f(boxes, targets, iou_type=iou_type).sum(), boxes)[0]
        for f in (iou_localization_kd, iou_loss)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert iou_type == "giou" or bool(found.any()) == (overlap > 1e-6)


@IOU_TYPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_boxes_give_zero(iou_type, dtype):
    student, _ = random_boxes(64)
    no_area = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 0], [3, 2, 3, 9], [1, 4, 9, 4]])
    inverted = torch.tensor([[8.0, 8, 2, 2], [8, 1, 2, 3]])
    tiny_and_huge = torch.tensor([[0.0, 0, 1e-5, 1e-5], [-1e6, -1e6, 1e6, 1e6]])
    student = torch.cat([student.detach(), no_area, inverted, tiny_and_huge]).to(dtype).requires_grad_()
    loss = iou_localization_kd(student, student.detach().clone(), iou_type=iou_type)
    assert torch.count_nonzero(loss) == 0
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.count_nonzero(grad) == 0


@IOU_TYPES
@pytest.mark.parametrize("reverse", [False, True], ids=["student", "teacher"])
def test_unequal_boxes_without_area_stay_finite(iou_type, reverse):
    point, segment, inverted, box = [5.0, 5, 5, 5], [2.0, 3, 2, 9], [9.0, 9, 1, 4], [0.0, 0, 10, 10]
    pairs = [(point, box), (segment, box), (inverted, box), (point, segment), (point, [6.0, 6, 6, 6])]
    student, teacher = (torch.tensor(x) for x in zip(*pairs, strict=True))
    if reverse:
        student, teacher = teacher, student
    student.requires_grad_()
    loss = iou_localization_kd(student, teacher, iou_type=iou_type)
    assert torch.isfinite(loss).all()
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(grad).all()
    # A box inside the other without any area: no overlap, and the formula says so.
    flat = {"giou": 1.0, "iou": 1 - 1e-6, "neg_log_iou": 13.815511}[iou_type]
    torch.testing.assert_close(loss[:2].detach(), torch.tensor([flat, flat]), rtol=1e-6, atol=0)


@IOU_TYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
def test_non_finite_coordinates_are_not_hidden(iou_type, value, side, which):
    student, teacher = (x.detach().clone() for x in random_boxes(3))
    if which == "both":
        teacher = student.clone()
    for name, boxes in (("student", student), ("teacher", teacher)):
        if which in (name, "both"):
            boxes[1, side] = value
    loss = iou_localization_kd(student, teacher, iou_type=iou_type)
    assert torch.isfinite(loss).tolist() == [True, False, True]


def test_weight_and_reductions():
    student, teacher = random_boxes(2, 6)
    weight = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    per_location = iou_localization_kd(student, teacher)
    assert per_location.shape == (2, 6)
    weighted = iou_localization_kd(student, teacher, weight=weight)
    torch.testing.assert_close(weighted, per_location * weight)
    total = iou_localization_kd(student, teacher, weight=weight, reduction="sum")
    assert total.shape == ()
    torch.testing.assert_close(total, weighted.sum())
    mask = weight > 0.5
    assert torch.equal(iou_localization_kd(student, teacher, weight=mask), per_location * mask)
    assert iou_localization_kd(student, teacher, weight=weight.double()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_any_leading_shape(shape):
    student, teacher = random_boxes(*shape)
    assert iou_localization_kd(student, teacher).shape == shape


def test_strided_view_equals_its_copy():
    student, teacher = random_boxes(2, 3, 5)
    student_map, teacher_map = (x.detach().permute(0, 1, 3, 2).contiguous() for x in (student, teacher))
    loss = iou_localization_kd(student_map.permute(0, 1, 3, 2), teacher_map.permute(0, 1, 3, 2))
    torch.testing.assert_close(loss, iou_localization_kd(student, teacher).detach())


@IOU_TYPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float32(iou_type, dtype):
    student, teacher = random_boxes(20)
    # Ten times larger: these areas overflow float16.
    student, teacher = (student.detach() * 10).to(dtype).requires_grad_(), (teacher * 10).to(dtype)
    loss = iou_localization_kd(student, teacher, iou_type=iou_type)
    assert loss.dtype == torch.float32 and torch.isfinite(loss).all()
    assert torch.equal(loss, iou_localization_kd(student.float(), teacher.float(), iou_type=iou_type))
    assert torch.autograd.grad(loss.sum(), student)[0].dtype == dtype


@IOU_TYPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing(iou_type, dtype):
    student, teacher = (x.detach().to(dtype) for x in random_boxes(20))
    student.requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = iou_localization_kd(student, teacher, iou_type=iou_type)
            results.append((loss, torch.autograd.grad(loss.sum(), student)[0]))
    (plain, plain_grad), (cast, cast_grad) = results
    assert cast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(plain, cast) and torch.equal(plain_grad, cast_grad)


def test_teacher_gets_no_gradient():
    student, teacher = random_boxes(5)
    teacher.requires_grad_()
    iou_localization_kd(student, teacher, reduction="sum").backward()
    assert torch.count_nonzero(student.grad) and teacher.grad is None


def test_no_location_gives_a_connected_zero():
    student = torch.zeros(2, 0, 4, requires_grad=True)
    loss = iou_localization_kd(student, student.detach(), weight=torch.zeros(2, 0), reduction="sum")
    assert loss.item() == 0
    loss.backward()
    assert student.grad.shape == student.shape


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_boxes": torch.zeros(2, 5, 4)}, r"\(2, 3, 4\) and \(2, 5, 4\)"),
        ({"student_boxes": torch.zeros(2, 5), "teacher_boxes": torch.zeros(2, 5)}, r"\(\.\.\., 4\)"),
        ({"student_boxes": torch.zeros(()), "teacher_boxes": torch.zeros(())}, r"shape is \(\)"),
        ({"teacher_boxes": torch.zeros(2, 3, 4, dtype=torch.int64)}, "teacher_boxes must be floating.*int64"),
        ({"student_boxes": torch.zeros(2, 3, 4, dtype=torch.int32)}, "student_boxes must be floating.*int32"),
        ({"weight": torch.zeros(2, 3, 1)}, r"expected \(2, 3\), found \(2, 3, 1\)"),
        ({"weight": torch.zeros(2, 3, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
        ({"iou_type": "diou"}, "iou_type.*neg_log_iou.*'diou'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    boxes = {"student_boxes": torch.zeros(2, 3, 4), "teacher_boxes": torch.zeros(2, 3, 4)}
    boxes.update(kwargs)
    with pytest.raises(ValueError, match=message):
        iou_localization_kd(boxes.pop("student_boxes"), boxes.pop("teacher_boxes"), **boxes)
