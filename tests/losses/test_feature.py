"""What all losses on features share: the region's cells, the projector, and what a pair must have."""

import pytest
import torch
from torch import nn

from d2kd.losses import LOSS_REGISTRY, FeatureLoss
from tests.losses.fake_outputs import output, random_maps, spec

LOSSES = [loss for _, loss in LOSS_REGISTRY if issubclass(loss, FeatureLoss)]
every_loss = pytest.mark.parametrize("loss", LOSSES)


def region_of(module, *cells, value=1.0):
    """One level's region as the module is given it: several stacked in front."""
    region = torch.full((cells[0], 1, *cells[1:]), value)
    return region if len(module.regions) == 1 else torch.stack([region] * len(module.regions))


@every_loss
def test_is_a_feature_loss(loss):
    assert issubclass(loss, FeatureLoss) and loss.task == "feature"
    assert loss().projector is None and not list(loss().parameters())


@every_loss
def test_a_crossed_source_has_no_features(loss):
    with pytest.raises(ValueError, match=f"{loss.__name__}.source is 'crossed', which has no features"):
        loss(source="crossed")


@every_loss
def test_a_cell_has_the_weight_of_its_best_anchor(loss):
    region = torch.tensor([[[[0.1, 0]], [[0.3, 0]], [[0.2, 0]]]])  # N = 1, A = 3, (1, 2)
    (cells,) = loss().prepare_region([region])
    torch.testing.assert_close(cells, torch.tensor([[[[0.3, 0]]]]))


@every_loss
def test_a_region_of_anchors_is_refused(loss):
    maps = output(features=[random_maps(1, 3, 4, 4)])
    with pytest.raises(ValueError, match=rf"{loss.__name__}.level_loss takes one weight a cell.*found \(1, 2, 4, 4\)"):
        loss().level_loss(maps, maps, 0, torch.ones(1, 2, 4, 4))


@every_loss
def test_widths_that_differ_need_a_projector(loss):
    message = (
        rf"^{loss.__name__} needs features of one width, but student \(GFL\) has 128 channels and the teacher "
        r"\(ATSS\) 256: set model.losses.NAME.projector_channels=\[128, 256\]"
    )
    with pytest.raises(ValueError, match=message):
        loss().check_pair(spec("GFL", feature_channels=128), spec("ATSS"))
    loss().check_pair(spec("GFL"), spec("ATSS"))
    loss(projector_channels=[128, 256]).check_pair(spec("GFL", feature_channels=128), spec("ATSS"))
    loss(projector_channels=[256, 256]).check_pair(spec("GFL"), spec("ATSS"))


@every_loss
@pytest.mark.parametrize(
    "channels, widths, advice",
    [
        ([128, 512], (128, 256), r"set model.losses.NAME.projector_channels=\[128, 256\]\.$"),
        ([256, 128], (128, 256), r"set model.losses.NAME.projector_channels=\[128, 256\]\.$"),
        ([128, 256], (256, 256), r"set model.losses.NAME.projector_channels=\[256, 256\], or null\.$"),
    ],
)
def test_a_projector_of_other_widths_is_refused(loss, channels, widths, advice):
    ours, theirs = widths
    found = rf"student \(GFL\) has {ours} channels and the teacher \(ATSS\) {theirs}"
    with pytest.raises(
        ValueError, match=rf"^{loss.__name__}.projector_channels is .*{channels[1]}\], but {found}: {advice}"
    ):
        loss(projector_channels=channels).check_pair(
            spec("GFL", feature_channels=ours), spec("ATSS", feature_channels=theirs)
        )


@every_loss
def test_the_projector_is_one_convolution_for_all_levels(loss):
    module = loss(projector_channels=[3, 5])
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "projector.weight": (5, 3, 1, 1),
        "projector.bias": (5,),
    }
    sizes = [(4, 6), (2, 3), (1, 1)]
    dtype = torch.float32
    student = [random_maps(2, 3, *size, seed=i, dtype=dtype).requires_grad_() for i, size in enumerate(sizes)]
    teacher = [random_maps(2, 5, *size, seed=9 + i, dtype=dtype) for i, size in enumerate(sizes)]
    projected = [nn.functional.conv2d(x, module.projector.weight, module.projector.bias) for x in student]
    plain = loss()
    assert [x.shape for x in projected] == [x.shape for x in teacher]
    region = [region_of(module, 2, *size) for size in sizes]
    sums = module(output(features=student), output(features=teacher), region)
    expected = plain(output(features=projected), output(features=teacher), region)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-6)
    sums.sum().backward()
    assert all(p.grad is not None for p in module.parameters()) and module.projector.weight.grad.any()
    assert all(x.grad is not None for x in student) and student[0].grad.any()


@every_loss
def test_an_empty_region_leaves_the_projector_connected(loss):
    module = loss(projector_channels=[3, 5])
    student = random_maps(2, 3, 4, 4, dtype=torch.float32).requires_grad_()
    teacher = random_maps(2, 5, 4, 4, dtype=torch.float32)
    sums = module(output(features=[student]), output(features=[teacher]), [region_of(module, 2, 4, 4, value=0.0)])
    assert not sums.any()
    sums.sum().backward()
    for tensor in (student, *module.parameters()):
        assert tensor.grad is not None and not tensor.grad.any()


@every_loss
def test_a_projector_reads_features_of_another_precision(loss):
    module = loss(projector_channels=[3, 5])
    student = random_maps(2, 3, 4, 4).bfloat16().requires_grad_()
    teacher = random_maps(2, 5, 4, 4, seed=1).bfloat16()
    region = [region_of(module, 2, 4, 4)]
    sums = module(output(features=[student]), output(features=[teacher]), region)
    wide = module(output(features=[student.float()]), output(features=[teacher.float()]), region)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, wide)
    sums.sum().backward()
    assert student.grad.dtype == torch.bfloat16


@every_loss
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"projector_channels": 256}, "projector_channels is 256, expected the student's channels .* or null"),
        ({"projector_channels": [256]}, r"projector_channels is \[256\], expected the student's channels"),
        ({"projector_channels": [256, 0]}, r"projector_channels is \[256, 0\], expected the student's channels"),
        (
            {"projector_channels": [256, 128.0]},
            r"projector_channels is \[256, 128.0\], expected the student's channels",
        ),
        ({"projector_channels": [True, 256]}, r"projector_channels is \[True, 256\], expected the student's channels"),
        ({"projector_channels": "auto"}, "projector_channels is 'auto', expected the student's channels"),
    ],
)
def test_projectors_that_mean_nothing_are_named(loss, kwargs, message):
    with pytest.raises(ValueError, match=f"{loss.__name__}.{message}"):
        loss(**kwargs)


@every_loss
def test_a_printed_term_shows_its_projector(loss):
    assert "projector_channels=None" in repr(loss())
    assert "projector_channels=[3, 5]" in repr(loss(projector_channels=(3, 5)))


@every_loss
def test_outputs_without_features_are_refused(loss):
    maps = output(features=[random_maps(1, 3, 4, 4)])
    for pair in ((maps, output(features=None)), (output(features=None), maps)):
        with pytest.raises(
            ValueError, match=f"^{loss.__name__} compares features, but one of the dense outputs has none"
        ):
            loss().feature_maps(*pair, 0)
