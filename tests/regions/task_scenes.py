"""Batches for TID's areas, and the areas once more: loops over cells and objects."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch

from d2kd.regions import atss

AREAS = ("weak", "key", "rest")
K = 4
SIZES = [(6, 7), (3, 4), (1, 1)]
STRIDES = [8, 16, 32]
DEFAULTS = dict(
    score="discrete",
    alpha=0.5,
    combine="product",
    cls_mode="score",
    iou_values=(2.0, 1.5, 0.4),
    cls_values=(2.0, 1.5, 0.4),
    iou_thresholds="matcher",
    cls_thresholds=(0.05, 0.5),
    centerness=False,
    key_threshold=None,
    min_gap=0.0,
    min_teacher_score=0.0,
    key_from="teacher",
    weak_topk=None,
    drop_student_better=False,
    cell_weight="value",
)


def scene(num_anchors=3, seed=0, objects=(4, 0, 2), requires_grad=False):
    """Student and teacher whose boxes are objects, moved more by the student, and the assignment."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    n, a = len(objects), num_anchors
    corners = [rand(g, 2) * 40 for g in objects]
    gt_boxes = [torch.cat([x, x + 10 + 15 * rand(len(x), 2)], dim=-1) for x in corners]
    gt_classes = [torch.randint(0, K, (g,), generator=generator) for g in objects]
    anchors, valid, positives = [], [], []
    for (h, w), stride in zip(SIZES, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
        center = torch.stack([x, y], dim=-1).expand(a, h, w, 2) + 2 * rand(a, h, w, 2)
        half = stride * (0.5 + rand(a, h, w, 2))
        anchors.append(torch.cat([center - half, center + half], dim=-1))
        valid.append(rand(n, a, h, w) > 0.3)
        positives.append(valid[-1] & (rand(n, a, h, w) > 0.8))

    def output(noise):
        boxes, logits, centerness = [], [], []
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
            centerness.append(torch.randn(n, a, h, w, generator=generator) - 1)
        return SimpleNamespace(logits=logits, boxes=boxes, class_dim=2, anchors=anchors, centerness=centerness)

    source, teacher = output(4.0), output(2.0)
    assignment = SimpleNamespace(
        valid=valid,
        positives=positives,
        gt_boxes=gt_boxes,
        gt_classes=gt_classes,
        num_classes=K,
        iou_thresholds=None,
        matched_boxes=None,
    )
    return source, teacher, assignment


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    area = [max(0.0, x[2] - x[0]) * max(0.0, x[3] - x[1]) for x in (a, b)]
    return common / max(sum(area) - common, 1e-6)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def location_score(output, assignment, n, level, a, i, j, o, thresholds):
    """(score, object, IoU) of one location, in the words of the specification."""
    box = output.boxes[level][n, a, i, j].tolist()
    overlaps = [iou(box, g.tolist()) for g in assignment.gt_boxes[n]]
    overlap = max(overlaps, default=0.0)
    g = overlaps.index(overlap) if overlap > 0 else -1
    z = output.logits[level][n, a, :, i, j].tolist()
    y = assignment.gt_classes[n][g].item() if g >= 0 else None
    hit = g >= 0 and z[y] == max(z)
    p = sigmoid(z[y]) if g >= 0 else 0.0
    if o["centerness"] and output.centerness is not None:
        p = math.sqrt(p * sigmoid(output.centerness[level][n, a, i, j].item()))
    if o["score"] == "continuous":
        reg, cls = overlap, float(hit) if o["cls_mode"] == "hit" else p
    else:
        negative, positive = thresholds[n][g] if g >= 0 else (1, 2)
        good, medium, poor = o["iou_values"]
        reg = good if overlap >= positive else medium if overlap > negative else poor
        low, high = (0, 0) if o["cls_mode"] == "hit" else o["cls_thresholds"]
        good, medium, poor = o["cls_values"]
        cls = poor if not hit else good if p >= high else medium if p >= low else poor
    if o["score"] == "continuous":
        alpha = o["alpha"]
        both = {"product": cls ** (1 - alpha) * reg**alpha, "sum": (1 - alpha) * cls + alpha * reg}
    else:
        both = {"product": cls * reg, "sum": cls + reg}
    return {**both, "cls": cls, "reg": reg}[o["combine"]], g, overlap


def object_thresholds(source, assignment, o):
    """For each image and object, (negative, positive)."""
    pair = o["iou_thresholds"]
    if pair == "matcher":
        pair = assignment.iou_thresholds or (0.4, 0.5)
    if pair != "atss":
        return [[pair] * len(boxes) for boxes in assignment.gt_boxes]
    found = []
    for n, boxes in enumerate(assignment.gt_boxes):
        anchors = [x.permute(1, 2, 0, 3).reshape(-1, 4) for x in source.anchors]
        valid = torch.cat([x[n].permute(1, 2, 0).reshape(-1) for x in assignment.valid])
        upper = atss.adaptive_thresholds(anchors, boxes, valid=valid).tolist()
        found.append([(0.25 * t, t) for t in upper])
    return found


def brute_force(source, teacher, assignment, **options):
    """Area -> per level (N, A, H, W), cell by cell."""
    o = {**DEFAULTS, **options}
    thresholds = object_thresholds(source, assignment, o)
    top, medium = (
        {"product": reg * cls, "sum": reg + cls, "cls": cls, "reg": reg}[o["combine"]]
        for reg, cls in zip(o["iou_values"][:2], o["cls_values"][:2], strict=True)
    )
    if o["score"] == "continuous":
        top, medium = 1.0, 0.5
    threshold = medium if o["key_threshold"] is None else o["key_threshold"]
    out = {area: [np.zeros(x.shape, dtype=np.float64) for x in assignment.valid] for area in AREAS}
    for n in range(len(assignment.gt_boxes)):
        cells = []
        for level, valid in enumerate(assignment.valid):
            for i, j in itertools.product(range(valid.shape[2]), range(valid.shape[3])):
                counted = [a for a in range(valid.shape[1]) if valid[n, a, i, j]]
                if not counted or not len(assignment.gt_boxes[n]):
                    out["rest"][level][n, :, i, j] = 1
                    continue
                ours, theirs = (
                    max(
                        (location_score(x, assignment, n, level, a, i, j, o, thresholds) for a in counted),
                        key=lambda found: (round(found[0], 5), found[2]),
                    )
                    for x in (source, teacher)
                )
                labelled = any(assignment.positives[level][n, a, i, j] for a in range(valid.shape[1]))
                cells.append((level, i, j, theirs[0], theirs[0] - ours[0], theirs[1], theirs[2], labelled))
        weak = [c for c in cells if c[4] > o["min_gap"] + 1e-4 and c[3] >= o["min_teacher_score"] - 1e-4]
        if o["weak_topk"]:
            kept = []
            for g in range(len(assignment.gt_boxes[n])):
                ranked = sorted((c for c in weak if c[5] == g), key=lambda c: (-round(c[4], 5), -c[6]))
                kept += ranked[: o["weak_topk"]]
            weak = kept
        for c in cells:
            level, i, j, score, gap, _, _, labelled = c
            good = score >= threshold - 1e-4
            key = {"teacher": good, "gt": labelled, "either": good or labelled}[o["key_from"]]
            if c in weak:
                area, weight = "weak", gap
            elif key:
                area, weight = "key", score / top
                if o["drop_student_better"] and gap < -1e-4:
                    continue
            else:
                area, weight = "rest", 1.0
            out[area][level][n, :, i, j] = 1.0 if o["cell_weight"] == "uniform" else weight
    return out


def assert_equal_areas(found, expected):
    for area in AREAS:
        for weights, want in zip(found[area], expected[area], strict=True):
            torch.testing.assert_close(weights, torch.as_tensor(want).float(), rtol=1e-4, atol=1e-5)


def assert_differ(found, other):
    assert any(not torch.equal(a, b) for area in AREAS for a, b in zip(found[area], other[area], strict=True))


def sizes_of(areas):
    return {area: sum((x > 0).sum().item() for x in areas[area]) for area in AREAS}
