"""Projects of other people: their detectors, heads and references."""

from __future__ import annotations

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.cases_override import override
from tests.bad_inputs.cases_pairing import OF_FILE, from_file, own, pair, row
from tests.bad_inputs.runs import distill, train

__all__ = ["CASES"]

FORGETFUL_HEAD = """
from d2kd.modeling.detectors import GFLHead

class MyHead(GFLHead):
    def predict(self, level, towers_out):
        super().predict(level, towers_out)

model.student.head._target_ = MyHead
"""
ONE_TOWER = """
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

class MyHead(RetinaNetHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_subnet = self.cls_subnet

model.student.head._target_ = MyHead
"""

CASES = [
    override(
        "dataloader.train.mapper.image_format=null",
        "d2kd train: dataloader.train.mapper.image_format is null, so that images keep the channel order of their "
        "files, expected 'BGR': set it (${model.input_format} is the order of a distilled model).",
    ),
    BadInput(
        "Config",
        "a reference to a key that `distill()` moved",
        train(more="optimizer.lr = '${model.num_classes}'\n"),
        "d2kd train: optimizer.lr: Interpolation key 'model.num_classes' not found; of a distilled model it is "
        "${model.student.num_classes}.",
    ),
    pair(
        "a student that is a plain module",
        "L(torch.nn.Linear)()",
        "fcos()",
        "d2kd train: distill()'s model: torch.nn.modules.linear.Linear is no DenseDetector of detectron2, expected one "
        "that d2kd reads: ATSS, FCOS, GFL, RetinaNet and their subclasses. Make it one "
        "(docs/own_detector.md#a-plain-module-as-a-densedetector).",
    ),
    pair(
        "a student that no adapter reads",
        "L(DenseDetector)()",
        "fcos()",
        "d2kd train: distill()'s model: d2kd has no adapter for detectron2.modeling.meta_arch.dense_detector."
        "DenseDetector; it reads ATSS, FCOS, GFL, RetinaNet and their subclasses. Register a subclass of "
        "d2kd.modeling.Adapter in d2kd.modeling.ADAPTER_REGISTRY for it "
        "(docs/own_detector.md#a-head-that-d2kd-does-not-know).",
    ),
    own(
        "a student's `forward` that takes more in training",
        "student",
        "trains_in_four_steps = False\n    def forward(self, x, y=None): return super().forward(x)",
        "d2kd train: builtins.Mine overrides DenseDetector.forward, which d2kd replaces by its four steps "
        "(preprocess_image, backbone, head, forward_training); move what it adds in training into one of those. If it "
        "adds something in inference alone, write trains_in_four_steps = True beside it "
        "(docs/own_detector.md#a-detector-with-its-own-forward).",
    ),
    from_file(
        "of a detector without a yacs form",
        "MODEL:\n  META_ARCHITECTURE: DistributionFCOS\n",
        OF_FILE + ", in which MODEL.META_ARCHITECTURE is 'DistributionFCOS', which has no yacs form: write its "
        "LazyConfig (docs/embedding.md#wrap-the-model).",
    ),
    row(
        "a head whose `predict()` returns nothing",
        distill("gfl()", "gfl()", "bckd", more=FORGETFUL_HEAD),
        "d2kd train: MyHead.predict() returned None, expected the maps of one level, a tuple in the order in which the "
        "head's forward returns its lists: end MyHead.predict() with a return of them.",
    ),
    row(
        "a student's head that calls one tower for both branches",
        distill("retinanet()", "retinanet()", "crosskd", more=ONE_TOWER),
        "d2kd train: The head calls block 1 of its 'cls' tower 2 times a level, expected once, since its output is "
        "taken from that call: it shares that module between blocks (give each its own), or a tower between branches "
        "(call it once and use the output again). Or write an adapter whose towers() names blocks that run once "
        "(docs/own_detector.md#a-head-that-d2kd-does-not-know), or choose losses with source='student'.",
    ),
]
