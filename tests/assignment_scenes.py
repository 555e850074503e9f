"""Scenes of anchors and objects, with ATSS in plain Python to compare with. Must not import detectron2."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2kd.regions import valuable_localization_region

_GOLDEN = Path(__file__).parent / "golden"
STRIDES = (8, 16, 32, 64, 128)
#: Cases of 02_atss_vlr_cases.npz whose numbers do not hang on the order of equals.
CASES = ("s_generic", "s_one_large", "s_no_gt", "s_tiny", "s_outside", "s_padded", "m_480x640")


def square_anchors(level_hw: Sequence[Sequence[int]], strides: Sequence[int] = STRIDES) -> list[Tensor]:
    """Per level, (H * W, 4): GFL's anchors, squares of side 8 * stride around (x * stride, y * stride)."""
    levels = []
    for (height, width), stride in zip(level_hw, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centers = torch.stack([x, y], dim=-1).flatten(0, 1).float()
        levels.append(torch.cat([centers - 4 * stride, centers + 4 * stride], dim=1))
    return levels


def golden_case(name: str) -> tuple[list[Tensor], Tensor, Tensor, dict[str, np.ndarray]]:
    """A reference scene: anchors, objects, which anchors are valid, and all its arrays."""
    arrays = np.load(_GOLDEN / "02_atss_vlr_cases.npz")
    case = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays.files if key.startswith(f"{name}/")}
    anchors = square_anchors(case["level_hw"].tolist())
    valid = torch.ones(sum(map(len, anchors)), dtype=torch.bool)
    valid[torch.from_numpy(case.get("invalid_inds", np.zeros(0, np.int64)))] = False
    return anchors, torch.from_numpy(case["gt_boxes"]), valid, case


#: The closed-form batch: sizes of its levels, and of each image its objects, classes and padded size.
ORACLE_HW = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))
ORACLE_IMAGES = (
    ([(10, 12, 70, 90), (60, 30, 190, 168), (200, 8, 216, 20), (20, 15, 300, 240)], [0, 3, 4, 2], (256, 320)),
    ([(20, 20, 52, 48), (30.5, 10.25, 210.75, 175.5)], [1, 2], (192, 224)),
)


def oracle_image(index: int) -> tuple[list[Tensor], Tensor, Tensor, dict]:
    """An image of the closed-form batch: anchors, objects, which anchors are valid, and the reference's counts."""
    boxes, _, (height, width) = ORACLE_IMAGES[index]
    valid = [
        ((torch.arange(h) * s < height)[:, None] & (torch.arange(w) * s < width)).flatten()
        for (h, w), s in zip(ORACLE_HW, STRIDES, strict=True)
    ]
    oracle = json.loads((_GOLDEN / "bckd_ld_oracle.json").read_text())
    counts = oracle["mmdet_2.10_LD_repo"]["assign"][index]
    return square_anchors(ORACLE_HW), torch.tensor(boxes, dtype=torch.float32), torch.cat(valid), counts


def per_level(flat: Tensor, level_anchors: Sequence[Tensor]) -> list[int]:
    """How many are not zero on each level."""
    return [int(x.count_nonzero()) for x in flat.split([len(level) for level in level_anchors])]


def random_scene(seed: int, num_gt: int = 4) -> tuple[list[Tensor], Tensor, Tensor]:
    """Three levels, the last smaller than nine anchors; objects of 6 to 60 pixels; a fifth of the anchors invalid."""
    generator = torch.Generator().manual_seed(seed)
    anchors = square_anchors([(6, 8), (3, 4), (2, 2)], STRIDES[:3])
    # of any shape and place, so that no two distances are equal
    anchors = [x + 6 * torch.rand(len(x), 4, generator=generator) for x in anchors]
    corners = torch.rand(num_gt, 2, generator=generator) * torch.tensor([50.0, 35.0])
    boxes = torch.cat([corners, corners + 6 + 54 * torch.rand(num_gt, 2, generator=generator)], dim=1)
    return anchors, boxes, torch.rand(sum(map(len, anchors)), generator=generator) > 0.2


Box = Sequence[float]


def slow_center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def slow_area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def slow_intersection(a: Box, b: Box) -> float:
    return slow_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def slow_iou(a: Box, b: Box) -> float:
    common = slow_intersection(a, b)
    return common / max(slow_area(a) + slow_area(b) - common, 1e-6)


def slow_candidates(level_anchors: Sequence[Sequence[Box]], valid: Sequence[bool], box: Box, topk: int) -> list[int]:
    found, offset = [], 0
    for anchors in level_anchors:
        numbers = [n for n in range(offset, offset + len(anchors)) if valid[n]]
        numbers.sort(key=lambda n: math.dist(slow_center(anchors[n - offset]), slow_center(box)))  # noqa: B023
        found += numbers[:topk]
        offset += len(anchors)
    return found


def slow_threshold(level_anchors: Sequence[Sequence[Box]], valid: Sequence[bool], box: Box, topk: int) -> float:
    anchors = [anchor for level in level_anchors for anchor in level]
    ious = [slow_iou(anchors[n], box) for n in slow_candidates(level_anchors, valid, box, topk)]
    return statistics.mean(ious) + statistics.stdev(ious)


def slow_assign(
    level_anchors: Sequence[Sequence[Box]], valid: Sequence[bool], boxes: Sequence[Box], topk: int
) -> list[int]:
    anchors = [anchor for level in level_anchors for anchor in level]
    claims: list[dict[int, float]] = [{} for _ in anchors]
    for g, box in enumerate(boxes):
        threshold = slow_threshold(level_anchors, valid, box, topk)
        for n in slow_candidates(level_anchors, valid, box, topk):
            x, y = slow_center(anchors[n])
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if inside and slow_iou(anchors[n], box) >= threshold:
                claims[n][g] = slow_iou(anchors[n], box)
    return [max(claim, key=claim.get) if claim else -1 for claim in claims]


def band_of_image(anchors: Sequence[Tensor], boxes: Tensor, **options: Tensor | float | str | None) -> Tensor:
    """(R,) weights: ``valuable_localization_region`` of one image; ``valid`` and ``excluded`` are (R,)."""
    rows = {name: value[None] if isinstance(value, Tensor) else value for name, value in options.items()}
    return valuable_localization_region(anchors, [boxes], **rows)[0]
