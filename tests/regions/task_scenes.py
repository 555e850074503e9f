"""Batches for TID's regions, and the regions once more: loops over cells and objects."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch

REGIONS = ("weak", "key", "rest")
K = 4
SIZES = [(6, 7), (3, 4), (1, 1)]
STRIDES = [8, 16, 32]
DEFAULTS = dict(combine="product", min_teacher_score=0.0)
COMBINED = {
    "product": lambda cls, reg: cls * reg,
    "sum": lambda cls, reg: cls + reg,
    "cls": lambda cls, reg: cls,
    "reg": lambda cls, reg: reg,
}


def scene(num_anchors=3, seed=0, objects=(4, 0, 2), requires_grad=False):
    """Student and teacher whose boxes are objects, moved more by the student, and the assignment."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    n, a = len(objects), num_anchors
    corners = [rand(g, 2) * 40 for g in objects]
    gt_boxes = [torch.cat([x, x + 10 + 15 * rand(len(x), 2)], dim=-1) for x in corners]
    gt_classes = [torch.randint(0, K, (g,), generator=generator) for g in objects]
    valid = [rand(n, a, h, w) > 0.3 for h, w in SIZES]

    def output(noise):
        boxes, logits = [], []
        for h, w in SIZES:
            level = 20 * rand(n, a, h, w, 4)
            level[..., 2:] += 20
            classes = torch.randn(n, a, K, h, w, generator=generator) * 2
            for i, found in enumerate(gt_boxes):
                if len(found):
                    which = torch.randint(0, len(found), (a, h, w), generator=generator)
                    level[i] = found[which] + noise * torch.randn(a, h, w, 4, generator=generator)
                    bonus = 2 * torch.nn.functional.one_hot(gt_classes[i][which], K)
                    classes[i] += bonus.movedim(-1, 1)
            boxes.append(level.requires_grad_(requires_grad))
            logits.append(classes.requires_grad_(requires_grad))
        return SimpleNamespace(logits=logits, boxes=boxes, class_dim=2)

    source, teacher = output(4.0), output(2.0)
    assignment = SimpleNamespace(valid=valid, gt_boxes=gt_boxes, gt_classes=gt_classes, iou_thresholds=None)
    return source, teacher, assignment


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    area = [max(0.0, x[2] - x[0]) * max(0.0, x[3] - x[1]) for x in (a, b)]
    return common / max(sum(area) - common, 1e-6)


def location_score(output, assignment, n, level, a, i, j, combine):
    """Score of one location, in the words of the specification."""
    box = output.boxes[level][n, a, i, j].tolist()
    overlaps = [iou(box, g.tolist()) for g in assignment.gt_boxes[n]]
    overlap = max(overlaps, default=0.0)
    cls = reg = 0.4
    if overlap > 0:
        negative, positive = assignment.iou_thresholds or (0.4, 0.5)
        reg = 2.0 if overlap >= positive else 1.5 if overlap > negative else 0.4
        z = output.logits[level][n, a, :, i, j].tolist()
        own = z[assignment.gt_classes[n][overlaps.index(overlap)].item()]
        p = 1 / (1 + math.exp(-own))
        if own == max(z):
            cls = 2.0 if p >= 0.5 else 1.5 if p >= 0.05 else 0.4
    return COMBINED[combine](cls, reg)


def brute_force(source, teacher, assignment, combine="product", min_teacher_score=0.0):
    """Region -> per level (N, A, H, W), cell by cell."""
    top, medium = (COMBINED[combine](x, x) for x in (2.0, 1.5))
    out = {region: [np.zeros(x.shape, dtype=np.float64) for x in assignment.valid] for region in REGIONS}
    for level, valid in enumerate(assignment.valid):
        for n, i, j in itertools.product(*(range(valid.shape[axis]) for axis in (0, 2, 3))):
            counted = [a for a in range(valid.shape[1]) if valid[n, a, i, j]]
            if not counted or not len(assignment.gt_boxes[n]):
                out["rest"][level][n, :, i, j] = 1
                continue
            ours, theirs = (
                max(location_score(x, assignment, n, level, a, i, j, combine) for a in counted)
                for x in (source, teacher)
            )
            if theirs - ours > 1e-4 and theirs >= min_teacher_score - 1e-4:
                out["weak"][level][n, :, i, j] = theirs - ours
            elif theirs >= medium - 1e-4:
                out["key"][level][n, :, i, j] = theirs / top
            else:
                out["rest"][level][n, :, i, j] = 1
    return out


def assert_equal_regions(found, expected):
    for region in REGIONS:
        for weights, want in zip(found[region], expected[region], strict=True):
            torch.testing.assert_close(weights, torch.as_tensor(want).float(), rtol=1e-4, atol=1e-5)


def assert_differ(found, other):
    assert any(not torch.equal(a, b) for region in REGIONS for a, b in zip(found[region], other[region], strict=True))


def sizes_of(regions):
    return {region: sum((x > 0).sum().item() for x in regions[region]) for region in REGIONS}
