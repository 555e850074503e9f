"""A detector without Detectron2, as docs/own_detector.md turns it into a DenseDetector. Not a test."""

import torch
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms


def block(channels, stride=1, inputs=None):
    conv = nn.Conv2d(inputs or channels, channels, 3, stride, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(2, channels), nn.ReLU())


class Body(nn.Module):
    """Images to maps of strides 8 and 16."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(block(width, 4, inputs=3), block(width, 2))
        self.down = block(width, 2)

    def forward(self, images):
        fine = self.stem(images)
        return [fine, self.down(fine)]


class Head(nn.Module):
    """Class logits, and the distances to the four sides in strides."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.cls_tower = nn.ModuleList(block(width) for _ in range(2))
        self.box_tower = nn.ModuleList(block(width) for _ in range(2))
        self.cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.box = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.constant_(self.cls.bias, -2.0)

    def forward(self, maps):
        logits, distances = [], []
        for x in maps:
            y = x
            for a, b in zip(self.cls_tower, self.box_tower):
                x, y = a(x), b(y)
            logits.append(self.cls(x))
            distances.append(F.softplus(self.box(y)))
        return logits, distances


class PlainDetector(nn.Module):
    strides = [8, 16]

    def __init__(self, num_classes=3, width=8):
        super().__init__()
        self.num_classes = num_classes
        self.body = Body(width)
        self.head = Head(width, num_classes)

    def forward(self, images, targets=None):
        logits, distances = self.head(self.body(images))
        if not self.training:
            return self.detections(logits, distances)
        return self.training_losses(logits, distances, targets)[0]

    def training_losses(self, logits, distances, targets):
        """The losses, and the number of positive locations."""
        points = torch.cat([self.points(x, s).flatten(0, 1) for x, s in zip(logits, self.strides)])
        labels, boxes = zip(*(self.assign(points, *target) for target in targets))
        positives = sum((x != self.num_classes).sum() for x in labels).clamp(min=1)
        return self.losses(logits, distances, labels, boxes), positives

    def points(self, x, stride):
        """(H, W, 2) centres of a map's cells."""
        rows, columns = (stride * (torch.arange(n, device=x.device) + 0.5) for n in x.shape[-2:])
        return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)

    def boxes(self, distances):
        """Per level (N, H, W, 4), xyxy."""
        decoded = []
        for x, stride in zip(distances, self.strides):
            points, sides = self.points(x, stride), stride * x.permute(0, 2, 3, 1)
            decoded.append(torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=-1))
        return decoded

    def assign(self, points, boxes, classes):
        """Of each point the class and box of the smallest object that it lies in; K is background."""
        inside = ((points[None] > boxes[:, None, :2]) & (points[None] < boxes[:, None, 2:])).all(dim=2)
        areas = torch.where(inside, (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)[:, None], torch.inf)
        areas = torch.cat([areas, areas.new_full((1, len(points)), torch.finfo().max)])
        owner = areas.argmin(dim=0)
        return F.pad(classes, (0, 1), value=self.num_classes)[owner], F.pad(boxes, (0, 0, 0, 1))[owner]

    def losses(self, logits, distances, labels, boxes):
        labels, boxes = torch.stack(tuple(labels)), torch.stack(tuple(boxes))
        scores = torch.cat([x.flatten(2).transpose(1, 2) for x in logits], dim=1)
        decoded = torch.cat([x.flatten(1, 2) for x in self.boxes(distances)], dim=1)
        positive = labels != self.num_classes
        count = positive.sum().clamp(min=1)
        targets = F.one_hot(labels, self.num_classes + 1)[..., :-1].to(scores)
        return {
            "loss_cls": sigmoid_focal_loss(scores, targets, alpha=0.25, gamma=2, reduction="sum") / count,
            "loss_box": giou_loss(decoded[positive], boxes[positive], reduction="sum") / count,
        }

    def detections(self, logits, distances):
        """Boxes, scores and classes of each image."""
        scores = torch.cat([x.flatten(2).transpose(1, 2) for x in logits], dim=1).sigmoid()
        decoded = torch.cat([x.flatten(1, 2) for x in self.boxes(distances)], dim=1)
        found = []
        for of_image, boxes in zip(scores, decoded):
            best, classes = of_image.max(dim=1)
            keep = batched_nms(boxes, best, classes, 0.6)[:100]
            found.append((boxes[keep], best[keep], classes[keep]))
        return found
