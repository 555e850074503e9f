import pytest
import torch
import torch.nn.functional as F

from d2kd.losses import CenternessKD, centerness_kd
from tests.losses.fake_outputs import output, random_maps, spec


def test_equals_the_formula_left_to_autograd():
    student, teacher = random_maps(3, 4, 5).mul(4).requires_grad_(), random_maps(3, 4, 5, seed=1) * 4
    loss = centerness_kd(student, teacher)
    expected = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), student)[0], rtol=1e-12, atol=1e-15)


def test_gradcheck():
    student, teacher, weight = random_maps(4, 5).requires_grad_(), random_maps(4, 5, seed=1), random_maps(4, 5, seed=2)
    assert torch.autograd.gradcheck(lambda z: centerness_kd(z, teacher, weight=weight), (student,))


def test_the_minimum_is_the_teachers_entropy():
    teacher = random_maps(20)
    student = teacher.clone().requires_grad_()
    loss = centerness_kd(student, teacher)
    entropy = torch.distributions.Bernoulli(logits=teacher).entropy()
    torch.testing.assert_close(loss.detach(), entropy)
    assert torch.count_nonzero(torch.autograd.grad(loss.sum(), student)[0]) == 0
    assert (centerness_kd(teacher + 0.1, teacher) > entropy).all()
    assert (centerness_kd(teacher - 0.1, teacher) > entropy).all()


def test_weight_and_reductions():
    student, teacher, weight = random_maps(3, 5), random_maps(3, 5, seed=1), random_maps(3, 5, seed=2)
    locations = centerness_kd(student, teacher)
    torch.testing.assert_close(centerness_kd(student, teacher, weight=weight), weight * locations)
    total = centerness_kd(student, teacher, weight=weight, reduction="sum")
    torch.testing.assert_close(total, (weight * locations).sum())


def test_computed_in_float32_and_teacher_detached():
    student = random_maps(6, dtype=torch.float32).bfloat16().requires_grad_()
    teacher = random_maps(6, seed=1, dtype=torch.float32).requires_grad_()
    loss = centerness_kd(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, centerness_kd(student.float(), teacher))
    loss.sum().backward()
    assert student.grad.dtype == torch.bfloat16 and teacher.grad is None


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_logits": torch.zeros(2, 9)}, r"\(2, 7\) and \(2, 9\)"),
        ({"student_logits": torch.zeros(2, 7, dtype=torch.int64)}, "student_logits must be floating.*int64"),
        ({"weight": torch.zeros(2)}, r"weight.*expected \(2, 7\), found \(2,\)"),
        ({"weight": torch.zeros(2, 7, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student_logits": torch.zeros(2, 7), "teacher_logits": torch.zeros(2, 7), **kwargs}
    with pytest.raises(ValueError, match=message):
        centerness_kd(**arguments)


def test_module_is_the_weighted_sum_over_locations():
    student, teacher, region = (random_maps(2, 3, 4, 5, seed=seed) for seed in range(3))
    loss = CenternessKD().level_loss(output(centerness=[None, student]), output(centerness=[None, teacher]), 1, region)
    torch.testing.assert_close(loss, (region * centerness_kd(student, teacher)).sum())


@pytest.mark.parametrize("ours, theirs", [(True, False), (False, True), (False, False)])
def test_a_pair_without_centerness_is_refused(ours, theirs):
    says = {True: "predicts it", False: "does not"}
    message = rf"student \(ATSS\) {says[ours]} and the teacher \(GFL\) {says[theirs]}"
    with pytest.raises(ValueError, match=message):
        CenternessKD().check_pair(spec("ATSS", centerness=ours), spec("GFL", centerness=theirs))


def test_a_pair_with_centerness_is_taken():
    CenternessKD().check_pair(spec("ATSS", centerness=True), spec("FCOS", centerness=True))
