import logging

import pytest
import torch
from torch import Tensor

from d2kd.losses import (
    SoftmaxClassificationKD,
    binary_classification_kd,
    softmax_classification_kd,
    temperature_kl,
)
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec


def test_defaults_are_those_of_the_paper():
    student, teacher = random_maps(5, 7), random_maps(5, 7, seed=1)
    expected = temperature_kl(student, teacher, temperature=2.0, bin_reduction="mean")
    assert torch.equal(softmax_classification_kd(student, teacher), expected)


def test_a_shift_of_all_classes_is_not_seen_here_but_by_binary_classification():
    """BCKD's whole point: every score differs, and the softmax says that nothing does."""
    teacher = random_maps(50, 7)
    student = (teacher + 3).requires_grad_()
    softmax, binary = (kernel(student, teacher) for kernel in (softmax_classification_kd, binary_classification_kd))
    torch.testing.assert_close(softmax, torch.zeros_like(softmax), rtol=0, atol=1e-14)
    (grad,) = torch.autograd.grad(softmax.sum(), student)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-14)
    assert (binary > 0.1).all()


def test_one_class_is_identically_zero():
    student, teacher = random_maps(9, 1).requires_grad_(), random_maps(9, 1, seed=1)
    loss = softmax_classification_kd(student, teacher)
    assert torch.count_nonzero(loss) == 0
    assert torch.count_nonzero(torch.autograd.grad(loss.sum(), student)[0]) == 0


def test_weight_and_reductions():
    student, teacher, weight = random_maps(2, 5, 7), random_maps(2, 5, 7, seed=1), random_maps(2, 7, seed=2)
    locations = temperature_kl(student, teacher, temperature=3.0, dim=1)

    def kernel(**kwargs) -> Tensor:
        return softmax_classification_kd(student, teacher, temperature=3.0, dim=1, **kwargs)

    torch.testing.assert_close(kernel(), locations)
    torch.testing.assert_close(kernel(weight=weight), weight * locations)
    torch.testing.assert_close(kernel(weight=weight, reduction="sum"), (weight * locations).sum())


def test_gradcheck():
    student, teacher, weight = random_maps(4, 5).requires_grad_(), random_maps(4, 5, seed=1), random_maps(4, seed=2)
    assert torch.autograd.gradcheck(lambda z: softmax_classification_kd(z, teacher, weight=weight), (student,))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_logits": torch.zeros(2, 9)}, r"\(2, 7\) and \(2, 9\)"),
        ({"student_logits": torch.zeros(2, 7, dtype=torch.int64)}, "must be floating.*int64"),
        ({"weight": torch.zeros(2, 1)}, r"weight.*expected \(2,\), found \(2, 1\)"),
        ({"weight": torch.zeros(2, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
        ({"dim": 2}, "dim must be an axis.*found 2"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student_logits": torch.zeros(2, 7), "teacher_logits": torch.zeros(2, 7), **kwargs}
    with pytest.raises(ValueError, match=message):
        softmax_classification_kd(**arguments)


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["gathered", "dense"])
def test_module_is_the_weighted_sum_over_locations(share):
    student, teacher = random_maps(2, 3, 6, 5, 7).requires_grad_(), random_maps(2, 3, 6, 5, 7, seed=1)
    region = sparse_region(2, 3, 5, 7, share=share)
    loss = SoftmaxClassificationKD(temperature=3.0).level_loss(
        output(logits=[None, student]), output(logits=[None, teacher]), 1, region
    )
    p, q = ((x / 3).softmax(2) for x in (teacher, student))
    expected = (region * (9 * (p * (p.log() - q.log())).mean(2))).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0], rtol=1e-10, atol=1e-16)


def test_an_empty_region_gives_a_connected_zero():
    student = random_maps(1, 2, 3, 4, 4).requires_grad_()
    loss = SoftmaxClassificationKD().level_loss(
        output(logits=[student]), output(logits=[student.detach()]), 0, torch.zeros(1, 2, 4, 4)
    )
    assert loss.item() == 0
    loss.backward()
    assert student.grad.shape == student.shape and torch.count_nonzero(student.grad) == 0


def test_one_class_is_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING):
        SoftmaxClassificationKD().check_pair(spec(num_classes=2), spec(num_classes=2))
        assert not caplog.records
        SoftmaxClassificationKD().check_pair(spec(num_classes=1), spec(num_classes=1))
    (record,) = caplog.records
    assert "identically zero" in record.message and "set this loss to null" in record.message


def test_a_temperature_that_means_nothing_is_named():
    with pytest.raises(ValueError, match="SoftmaxClassificationKD.temperature is -2, expected"):
        SoftmaxClassificationKD(temperature=-2)


def test_a_weight_that_was_tuned_for_another_number_of_classes():
    """It is then one of the sum over classes: as many classes as it was tuned for change nothing, not by a bit."""
    student, teacher, region = random_maps(1, 2, 8, 4, 4), random_maps(1, 2, 8, 4, 4, seed=1), sparse_region(1, 2, 4, 4)

    def value(tuned_for_classes):
        loss = SoftmaxClassificationKD(tuned_for_classes=tuned_for_classes)
        return loss.level_loss(output(logits=[student]), output(logits=[teacher]), 0, region)

    assert torch.equal(value(8), value(None)) and value(None) > 0
    torch.testing.assert_close(value(80), value(None) / 10)
    with pytest.raises(ValueError, match="SoftmaxClassificationKD.tuned_for_classes is 0"):
        SoftmaxClassificationKD(tuned_for_classes=0)
