"""Layers that configs name."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.layers.batch_norm import FrozenBatchNorm2d, get_norm
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn
from torch.nn import functional as F

from d2kd.modeling.backbones import P6P7, FrozenStatisticsBatchNorm2d


def with_statistics(norm):
    for name in ("weight", "running_var"):
        nn.init.uniform_(getattr(norm, name), 0.5, 2)
    for name in ("bias", "running_mean"):
        nn.init.normal_(getattr(norm, name))
    return norm


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_that_of_evaluation(training):
    reference = with_statistics(nn.BatchNorm2d(5, eps=1e-3)).eval()
    norm = FrozenStatisticsBatchNorm2d(5, eps=1e-3)
    norm.load_state_dict(reference.state_dict())
    assert list(norm.state_dict()) == list(reference.state_dict())
    norm.train(training)
    statistics = {name: x.clone() for name, x in norm.named_buffers()}
    x = torch.randn(3, 5, 4, 6, requires_grad=True)
    for _ in range(2):
        torch.testing.assert_close(norm(x), reference(x))
    assert all(torch.equal(x, statistics[name]) for name, x in norm.named_buffers())
    assert statistics["num_batches_tracked"] == 0


def test_batch_norm_trains_its_affine_parameters():
    norm = with_statistics(FrozenStatisticsBatchNorm2d(3).double())
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    grads = torch.autograd.grad((norm(x) * cotangent).sum(), [norm.weight, norm.bias, x])
    normal = (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(grads[0], (normal * cotangent).sum((0, 2, 3)))
    torch.testing.assert_close(grads[1], cotangent.sum((0, 2, 3)))
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1)
    torch.testing.assert_close(grads[2], cotangent * scale)


def test_batch_norm_of_one_cell():
    """Batch norm with statistics of the batch refuses it."""
    assert FrozenStatisticsBatchNorm2d(4).train()(torch.randn(1, 4, 1, 1)).shape == (1, 4, 1, 1)


def build_resnet(freeze_at, norm):
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=4 * stride, stride_per_block=[stride], norm=norm)
        for stride in (1, 2)
    ]
    return ResNet(BasicStem(3, 4, norm=norm), stages, out_features=["res3"], freeze_at=freeze_at)


def test_batch_norm_in_a_resnet():
    assert isinstance(get_norm(FrozenStatisticsBatchNorm2d, 7), FrozenStatisticsBatchNorm2d)
    frozen = build_resnet(2, FrozenStatisticsBatchNorm2d)
    kinds = {
        name: type(module)
        for name, module in frozen.named_modules()
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))
    }
    assert len(kinds) == 6
    for name, kind in kinds.items():
        assert kind is (FrozenStatisticsBatchNorm2d if name.startswith("res3") else FrozenBatchNorm2d)
    trained = {name for name, x in frozen.named_parameters() if x.requires_grad}
    assert {"res3.0.conv1.norm.weight", "res3.0.conv1.norm.bias"} <= trained
    assert all(name.startswith("res3") for name in trained)


def test_batch_norm_takes_the_weights_of_others():
    x = torch.randn(2, 3, 16, 16)
    source = build_resnet(0, "BN")
    source(x)  # statistics of their own
    target = build_resnet(2, FrozenStatisticsBatchNorm2d).train()
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert not missing and all(key.endswith("num_batches_tracked") for key in unexpected)
    torch.testing.assert_close(target(x)["res3"], source.eval()(x)["res3"])


@pytest.mark.parametrize("relu", [False, True])
def test_p6p7(relu):
    block = P6P7(4, 6, relu_before_p7=relu)
    reference = LastLevelP6P7(4, 6)
    reference.load_state_dict(block.state_dict())
    assert list(block.state_dict()) == ["p6.weight", "p6.bias", "p7.weight", "p7.bias"]
    x = torch.randn(2, 4, 9, 12)
    p6, p7 = block(x)
    expected_p6, expected_p7 = reference(x)
    assert torch.equal(p6, expected_p6) and p6.shape[2:] == (5, 6) and p7.shape[2:] == (3, 3)
    assert torch.equal(p7, expected_p7) == relu
    if not relu:
        assert torch.equal(p7, F.conv2d(p6, block.p7.weight, block.p7.bias, stride=2, padding=1))


@pytest.mark.parametrize("in_feature, channels", [("p3", 6), ("res3", 8)])
def test_p6p7_in_an_fpn(in_feature, channels):
    """From an FPN output or from the backbone's; of levels 3, so its own are called p4 and p5 here."""
    bottom_up = build_resnet(0, "")
    fpn = FPN(bottom_up, ["res3"], 6, top_block=P6P7(channels, 6, in_feature=in_feature))
    image = torch.randn(1, 3, 64, 64)
    maps = fpn(image)
    source = maps["p3"] if in_feature == "p3" else bottom_up(image)["res3"]
    p6, p7 = fpn.top_block(source)
    assert torch.equal(maps["p4"], p6) and torch.equal(maps["p5"], p7)
    assert fpn.output_shape()["p5"] == ShapeSpec(channels=6, stride=32)
