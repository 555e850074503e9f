import pytest
import torch

from d2kd.losses import FeatureImitation, feature_imitation
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec


def test_by_hand():
    student = torch.tensor([[1.0, 2], [3, 4]]).view(1, 2, 1, 2)  # two channels, two cells
    teacher = torch.tensor([[0.0, 2], [1, 1]]).view(1, 2, 1, 2)
    assert feature_imitation(student, teacher).tolist() == [[[(1 + 4) / 2, (0 + 9) / 2]]]


def test_weight_and_reductions():
    student, teacher, weight = random_maps(2, 5, 3, 4), random_maps(2, 5, 3, 4, seed=1), random_maps(2, 3, 4, seed=2)
    cells = torch.stack([(student - teacher)[:, c] ** 2 for c in range(5)]).sum(0) / 5
    torch.testing.assert_close(feature_imitation(student, teacher), cells)
    torch.testing.assert_close(feature_imitation(student, teacher, weight=weight), weight * cells)
    total, mean = (feature_imitation(student, teacher, weight=weight, reduction=r) for r in ("sum", "mean"))
    torch.testing.assert_close(total, (weight * cells).sum())
    torch.testing.assert_close(mean, (weight * cells).mean())


def test_gradcheck():
    student, teacher, weight = random_maps(2, 3, 2, 2), random_maps(2, 3, 2, 2, seed=1), random_maps(2, 2, 2, seed=2)
    assert torch.autograd.gradcheck(lambda x: feature_imitation(x, teacher, weight=weight), (student.requires_grad_(),))


def test_computed_in_float32_and_teacher_detached():
    """The square of 300 overflows float16."""
    student = torch.full((1, 2, 1, 1), 300.0, dtype=torch.float16, requires_grad=True)
    teacher = torch.zeros(1, 2, 1, 1, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_imitation(student, teacher)
    assert loss.dtype == torch.float32 and loss.item() == 90000
    loss.sum().backward()
    assert student.grad.dtype == torch.float16 and student.grad.flatten().tolist() == [300, 300]
    assert teacher.grad is None


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher": torch.zeros(2, 4, 5, 6)}, r"\(2, 3, 5, 6\) and \(2, 4, 5, 6\).*projector"),
        ({"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3)}, r"\(N, C, H, W\)"),
        ({"student": torch.zeros(2, 0, 5, 6), "teacher": torch.zeros(2, 0, 5, 6)}, r"found \(2, 0, 5, 6\)"),
        ({"student": torch.zeros(2, 3, 5, 6, dtype=torch.int64)}, "student must be floating.*int64"),
        ({"weight": torch.zeros(2, 1, 5, 6)}, r"weight.*expected \(2, 5, 6\), found \(2, 1, 5, 6\)"),
        ({"weight": torch.zeros(2, 5, 6, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "max"}, "reduction.*'max'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student": torch.zeros(2, 3, 5, 6), "teacher": torch.zeros(2, 3, 5, 6), **kwargs}
    with pytest.raises(ValueError, match=f"feature_imitation: .*{message}"):
        feature_imitation(**arguments)


@pytest.mark.parametrize("share", [0.05, 0.9], ids=["gathered", "dense"])
@pytest.mark.parametrize("anchors", [1, 3])
def test_module_weighs_a_cell_with_its_largest_anchor(anchors, share):
    student, teacher = random_maps(2, 6, 5, 7).requires_grad_(), random_maps(2, 6, 5, 7, seed=1)
    region = sparse_region(2, anchors, 5, 7, share=share)
    module = FeatureImitation(normalizer="level_locations")
    (prepared,) = module.prepare_region([region])
    assert prepared.shape == (2, 1, 5, 7)
    loss = module.level_loss(output(features=[student]), output(features=[teacher]), 0, prepared)
    expected = sum(
        max(region[n, :, h, w]) * ((student - teacher)[n, :, h, w] ** 2).mean()
        for n in range(2)
        for h in range(5)
        for w in range(7)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0], rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("anchors", [1, 4])
def test_weighted_mean_over_cells_does_not_depend_on_the_anchors(anchors):
    """What a caller divides by is the prepared region's weight, so that four anchors a cell are one cell."""
    student, teacher = random_maps(1, 3, 4, 4), random_maps(1, 3, 4, 4, seed=1)
    module = FeatureImitation(normalizer="level_locations")
    (prepared,) = module.prepare_region([torch.ones(1, anchors, 4, 4)])
    loss = module.level_loss(output(features=[student]), output(features=[teacher]), 0, prepared)
    torch.testing.assert_close(loss / prepared.sum(), (student - teacher).square().mean())


def test_a_region_of_anchors_is_refused():
    maps = output(features=[random_maps(1, 3, 4, 4)])
    with pytest.raises(ValueError, match=r"one weight a cell.*found \(1, 2, 4, 4\): pass .* prepare_region"):
        FeatureImitation().level_loss(maps, maps, 0, torch.ones(1, 2, 4, 4))


def test_an_empty_region_gives_a_connected_zero():
    student = random_maps(1, 3, 4, 4).requires_grad_()
    loss = FeatureImitation().level_loss(
        output(features=[student]), output(features=[student.detach() + 1]), 0, torch.zeros(1, 1, 4, 4)
    )
    assert loss.item() == 0
    loss.backward()
    assert student.grad.shape == student.shape and torch.count_nonzero(student.grad) == 0


def test_other_channels_are_refused():
    message = r"student \(GFL\) has 64 channels and the teacher \(ATSS\) 256: .*out_channels"
    with pytest.raises(ValueError, match=message):
        FeatureImitation().check_pair(spec("GFL", feature_channels=64), spec("ATSS"))
    FeatureImitation().check_pair(spec("GFL"), spec("ATSS"))


def test_a_crossed_source_has_no_features():
    with pytest.raises(ValueError, match="FeatureImitation.source is 'crossed', which has no features"):
        FeatureImitation(source="crossed")
