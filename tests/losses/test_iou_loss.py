"""The IoU loss as a detector uses it; its formula is tested in test_iou_localization."""

import pytest
import torch
from torch import Tensor

from d2kd.losses import iou_localization_kd, iou_loss

IOU_TYPES = pytest.mark.parametrize("iou_type", ["giou", "iou", "neg_log_iou"])


def random_boxes(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    boxes = []
    for _ in range(2):
        center, size = (torch.rand(*shape, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        center, size = 50 + 10 * center, 20 + 60 * size
        boxes.append(torch.cat([center - size / 2, center + size / 2], dim=-1).requires_grad_())
    return boxes[0], boxes[1]


@IOU_TYPES
def test_is_the_distillation_kernel(iou_type):
    boxes, targets = random_boxes(3, 5)
    loss = iou_loss(boxes, targets, iou_type=iou_type)
    kernel = iou_localization_kd(boxes, targets, iou_type=iou_type)
    assert loss.shape == (3, 5) and torch.equal(loss, kernel)


def test_pair_from_reference_code():
    boxes, targets = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 5, 25, 15]])
    torch.testing.assert_close(iou_loss(boxes, targets), torch.tensor([1.17575765]), rtol=0, atol=1e-6)


@IOU_TYPES
def test_gradient_flows_into_both(iou_type):
    boxes, targets = random_boxes(4)
    assert torch.autograd.gradcheck(lambda b, t: iou_loss(b, t, iou_type=iou_type), (boxes, targets))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"targets": torch.zeros(2, 5, 4)}, r"boxes and targets.*\(2, 3, 4\) and \(2, 5, 4\)"),
        ({"targets": torch.zeros(2, 3, 4, dtype=torch.int64)}, "targets must be floating.*int64"),
        ({"iou_type": "diou"}, "iou_type.*neg_log_iou.*'diou'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"boxes": torch.zeros(2, 3, 4), "targets": torch.zeros(2, 3, 4), **kwargs}
    with pytest.raises(ValueError, match=f"iou_loss: {message}"):
        iou_loss(arguments.pop("boxes"), arguments.pop("targets"), **arguments)
