"""Heads and detectors as other projects write them, on the tiny detectors of tests.helpers. Not a test."""

import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn
from torch.nn import functional as F

from tests.helpers import build_detector


class BoxesFirst(RetinaNetHead):
    """Another order of calls: all boxes before all classes."""

    def forward(self, features):
        boxes = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return [self.cls_score(self.cls_subnet(x)) for x in features], boxes


class CoarseFirst(RetinaNetHead):
    """Another order of calls: the levels from the last to the first."""

    def forward(self, features):
        logits, boxes = super().forward(features[::-1])
        return logits[::-1], boxes[::-1]


class ExtraList(RetinaNetHead):
    """A third list, of IoU predictions, from the box tower."""

    def forward(self, features):
        logits, boxes = super().forward(features)
        return logits, boxes, [x[:, ::4].tanh() for x in boxes]


class ExtraDict(RetinaNetHead):
    """Something else than lists beside the predictions."""

    def forward(self, features):
        logits, boxes = super().forward(features)
        return logits, boxes, {"levels": len(features), "first": features[0]}


class ExtraDetector(RetinaNet):
    """Reads what ``ExtraList`` and ``ExtraDict`` return."""

    def forward_training(self, images, features, predictions, gt_instances):
        *predictions, extra = predictions
        losses = super().forward_training(images, features, predictions, gt_instances)
        tensors = [extra["first"]] if isinstance(extra, dict) else extra
        return {**losses, "loss_extra": sum(x.square().mean() for x in tensors)}

    def forward_inference(self, images, features, predictions):
        return super().forward_inference(images, features, predictions[:2])


class ExtraFirst(RetinaNetHead):
    """Returns something before the class logits."""

    def forward(self, features):
        return features, *super().forward(features)


class BoxesReturnedFirst(RetinaNetHead):
    def forward(self, features):
        return super().forward(features)[::-1]


class BoxesReturnedFirstDetector(RetinaNet):
    """Reads ``BoxesReturnedFirst``: consistent in itself."""

    def forward_training(self, images, features, predictions, gt_instances):
        return super().forward_training(images, features, predictions[::-1], gt_instances)

    def forward_inference(self, images, features, predictions):
        return super().forward_inference(images, features, predictions[::-1])


class DictHead(RetinaNetHead):
    def forward(self, features):
        return dict(zip(("logits", "boxes"), super().forward(features)))


class Attention(RetinaNetHead):
    """Weighs the towers' outputs by where they are large, before the predictors."""

    def forward(self, features):
        def attend(x):
            return x * x.mean(dim=1, keepdim=True).flatten(2).softmax(dim=2).view(len(x), 1, *x.shape[-2:])

        return (
            [self.cls_score(attend(self.cls_subnet(x))) for x in features],
            [self.bbox_pred(attend(self.bbox_subnet(x))) for x in features],
        )


class OneTower(RetinaNetHead):
    """Both predictors on the first tower, which is called once; the second is not called."""

    def forward(self, features):
        towers = [self.cls_subnet(x) for x in features]
        return [self.cls_score(x) for x in towers], [self.bbox_pred(x) for x in towers]


class Functional(RetinaNetHead):
    """Does not call its convolutions."""

    def forward(self, features):
        def run(tower, x):
            for conv in tower[::2]:
                x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
            return x

        return (
            [self.cls_score(run(self.cls_subnet, x)) for x in features],
            [self.bbox_pred(run(self.bbox_subnet, x)) for x in features],
        )


class ModuleLists(RetinaNetHead):
    """Towers that are lists, called one by one."""

    def forward(self, features):
        def run(tower, x):
            for module in tower:
                x = module(x)
            return x

        return (
            [self.cls_score(run(self.cls_subnet, x)) for x in features],
            [self.bbox_pred(run(self.bbox_subnet, x)) for x in features],
        )


class CenternessFirst(FCOSHead):
    """FCOS with centerness computed before the rest, from the box tower."""

    def forward(self, features):
        boxes = [self.bbox_subnet(x) for x in features]
        centerness = [self.ctrness(x) for x in boxes]
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        return logits, [self.bbox_pred(x) for x in boxes], centerness


class BatchStatistics(nn.BatchNorm2d):
    """Normalises by the batch in inference too."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 1.0, self.eps)


def with_head(family, head_class, *, detector_class=None, **kwargs):
    """A tiny detector whose stock head becomes a ``head_class`` with the same modules; norms keep random statistics."""
    detector = build_detector(family, detector_class=detector_class, **kwargs)
    if head_class is not None:
        detector.head.__class__ = head_class
    generator = torch.Generator().manual_seed(0)
    for name, x in detector.head.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            x.copy_(0.5 + torch.rand(x.shape, generator=generator))
    return detector
