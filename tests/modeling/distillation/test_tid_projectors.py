"""TID's regions depend on what detectors say of boxes and classes, not on how their heads code it."""

import pytest
import torch
from torch import Tensor

from d2kd.modeling import get_adapter
from d2kd.regions import REGION_REGISTRY
from tests.helpers import FAMILIES, NUM_CLASSES, REG_MAX, build_detector, make_batch

SIZES = [(6, 8), (3, 4), (2, 2)]
STRIDES = (8, 16, 32)
IMAGES = 2


def predicted(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Class logits (N, K, H, W) and boxes (N, H, W, 4) that every family can code, one anchor a cell."""
    generator = torch.Generator().manual_seed(seed)
    logits, boxes = [], []
    for (h, w), stride in zip(SIZES, STRIDES, strict=True):
        logits.append(2 * torch.randn(IMAGES, NUM_CLASSES, h, w, generator=generator))
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        centers = torch.stack([x, y], dim=-1) * stride
        # Within GFL's bins from its own centres, which lie half a stride away.
        sides = stride * (0.75 + 2.5 * torch.rand(IMAGES, h, w, 4, generator=generator))
        boxes.append(torch.cat([centers - sides[..., :2], centers + sides[..., 2:]], dim=-1))
    return logits, boxes


def dense_output(detector, logits, boxes):
    anchors = detector.anchor_generator([torch.zeros(IMAGES, 8, h, w) for h, w in SIZES])
    maps = []
    for (h, w), stride, level, target in zip(SIZES, STRIDES, anchors, boxes, strict=True):
        if type(detector).__name__ == "GFL":
            centers = level.get_centers().view(h, w, 2)
            distances = torch.cat([centers - target[..., :2], target[..., 2:] - centers], dim=-1) / stride
            assert 0 < distances.min() and distances.max() < REG_MAX
            # All of the probability on the two bins around the distance.
            bins = (1 - (distances[..., None] - torch.arange(REG_MAX + 1)).abs()).clamp(min=1e-12).log()
            params = bins.flatten(3)
        else:
            flat = target.flatten(1, 2)
            params = torch.stack([detector.box2box_transform.get_deltas(level.tensor, x) for x in flat])
            params = params.view(IMAGES, h, w, 4)
        maps.append(params.permute(0, 3, 1, 2))
    centerness = [torch.zeros(IMAGES, 1, h, w) for h, w in SIZES]
    return get_adapter(detector).dense_output(detector, [logits, maps, centerness], anchors), anchors


@pytest.fixture(scope="module")
def regions():
    """The regions by family, of the same predictions of student and teacher."""
    found = {}
    gt = [x["instances"] for x in make_batch([(48, 64), (48, 64)], objects=(4, 4))]
    said = [predicted(seed) for seed in (0, 1)]
    # Each object is where the teacher puts it, sure of its class; two of four also where the student does.
    for n, instances in enumerate(gt):
        for i, (level, y, x) in enumerate(((0, 2, 3), (0, 4, 5), (1, 1, 2), (1, 2, 1))):
            box, label = said[1][1][level][n, y, x], instances.gt_classes[i]
            instances.gt_boxes.tensor[i] = box
            for logits, boxes in said[i % 2 :]:
                boxes[level][n, y, x] = box
                logits[level][n, label, y, x] = 5.0
    for family in FAMILIES:
        detector = build_detector(family, sizes=((8,), (16,), (32,)))
        (student, anchors), (teacher, _) = (dense_output(detector, *x) for x in said)
        for output in (student, teacher):
            assert [x.shape[1] for x in output.logits] == [1, 1, 1]
        for ours, given in zip(teacher.boxes, said[1][1], strict=True):
            torch.testing.assert_close(ours[:, 0], given, rtol=1e-4, atol=1e-3)
        assignment = get_adapter(detector).assignment(detector, detector.label_anchors(anchors, gt), gt, SIZES)
        assert all(x.all() for x in assignment.valid)
        found[family] = REGION_REGISTRY.get("task_integration")(student, teacher, assignment)
    return found


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_equal_boxes_and_scores_have_equal_regions(regions, family):
    for name, levels in regions[family].items():
        for level, expected in zip(levels, regions[FAMILIES[0]][name], strict=True):
            torch.testing.assert_close(level, expected, rtol=0, atol=1e-6)


def test_the_scene_has_cells_of_all_regions(regions):
    for levels in regions["RetinaNet"].values():
        assert sum((x > 0).sum() for x in levels) >= 3
