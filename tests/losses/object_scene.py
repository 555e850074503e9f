"""Objects, the locations that answer for them, and a teacher's boxes there."""

import torch
from torch import Tensor

#: N images, A anchors a cell, (H, W) of the levels.
N, A, SIZES = 2, 3, ((4, 5), (2, 3))


def scene() -> dict[str, list[Tensor]]:
    """Anchors, the teacher's boxes, and three objects an image (of the second, one has a single location)."""
    generator = torch.Generator().manual_seed(4)
    objects = torch.tensor(
        [[[0.0, 0, 9, 9], [5, 5, 30, 20], [1, 2, 3, 4]], [[0, 0, 9, 9], [7, 7, 8, 8], [2, 2, 40, 50]]]
    )
    found = dict(anchors=[], boxes=[], matched_boxes=[], positives=[])
    for h, w in SIZES:
        corner = 30 * torch.rand(A, h, w, 2, generator=generator)
        sides = 4 + 20 * torch.rand(A, h, w, 2, generator=generator)
        found["anchors"].append(torch.cat([corner, corner + sides], dim=-1))
        index = torch.randint(0, 2, (N, A, h, w), generator=generator)
        index[1][index[1] == 1] = 2
        matched = torch.stack([boxes[i] for boxes, i in zip(objects, index)])
        found["positives"].append(torch.rand(N, A, h, w, generator=generator) < 0.4)
        found["matched_boxes"].append(matched)
        found["boxes"].append(matched + 3 * torch.randn(matched.shape, generator=generator))
    found["matched_boxes"][1][1, 2, 1, 2] = objects[1, 1]
    found["positives"][1][1, 2, 1, 2] = True
    return found
