"""Images that a tiny detector learns in seconds: squares whose colour is their class. Not a test."""

from functools import cache
from itertools import count

import torch
from detectron2.structures import Boxes, Instances

from tests.helpers import build_detector, run_step

#: Blue, green, red of each class. With the channels reversed none of them is another.
COLORS = torch.tensor([[230.0, 40.0, 20.0], [30.0, 200.0, 40.0], [20.0, 190.0, 230.0]])
SIDE = 64


def make_batch(seed, images=4):
    """Images of SIDE x SIDE, grey noise with two squares each; BGR."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(images):
        image = (
            torch.rand(1, SIDE, SIDE, generator=generator) * 60 + torch.rand(3, SIDE, SIDE, generator=generator) * 60
        )
        classes = torch.randint(len(COLORS), (2,), generator=generator)
        boxes = []
        for half, class_id in enumerate(classes):
            size = int(torch.randint(18, 27, (1,), generator=generator))
            x = int(torch.randint(2, SIDE - size - 2, (1,), generator=generator))
            y = 32 * half + int(torch.randint(1, 32 - size, (1,), generator=generator))
            noise = torch.rand(3, size, size, generator=generator) * 40 - 20
            image[:, y : y + size, x : x + size] = COLORS[class_id, :, None, None] + noise
            boxes.append([x, y, x + size, y + size])
        instances = Instances((SIDE, SIDE), gt_boxes=Boxes(torch.tensor(boxes).float()), gt_classes=classes)
        item = {"image": image.clamp(0, 255).byte(), "instances": instances, "height": SIDE, "width": SIDE}
        batch.append(item)
    return batch


@cache
def trained(family="FCOS"):
    """Weights of a detector that knows these images, as of ``build_detector(family, width=8)``."""
    detector = build_detector(family, seed=3, width=8, fpn=16, conv_dims=(16,)).train()
    optimizer = torch.optim.Adam(detector.parameters(), lr=4e-3)
    for step in range(150):
        losses = run_step(detector, make_batch(step, images=6))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in detector.state_dict().items()}


def teacher(family="FCOS", change=None, **kwargs):
    """A detector that knows these images, its weights changed by ``change(weights)``."""
    detector = build_detector(family, seed=3, width=8, fpn=16, conv_dims=(16,), **kwargs)
    weights = {name: value.clone() for name, value in trained(family).items()}
    if change is not None:
        change(weights)
    detector.load_state_dict(weights)
    return detector.eval()


def make_batches():
    """A loader without end."""
    return (make_batch(1000 + seed) for seed in count())
