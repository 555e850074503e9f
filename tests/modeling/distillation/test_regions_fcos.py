"""LD's region on FCOS, with Detectron2's own labels: the reference's counts."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances

from d2kd.modeling import get_adapter
from d2kd.regions import REGION_REGISTRY
from tests.assignment_scenes import ORACLE_HW, ORACLE_IMAGES, STRIDES
from tests.helpers import build_detector

NUM_CLASSES = 5


def test_points_inside_an_object_that_are_not_positive():
    detector = build_detector("FCOS", num_classes=NUM_CLASSES)
    generator = DefaultAnchorGenerator(
        sizes=[[s] for s in STRIDES], aspect_ratios=[1.0], strides=list(STRIDES), offset=0.5
    )
    anchors = generator([torch.zeros(1, 1, h, w) for h, w in ORACLE_HW])
    instances = []
    for boxes, classes, image_size in ORACLE_IMAGES:
        instances.append(Instances(image_size))
        instances[-1].gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances[-1].gt_classes = torch.tensor(classes)
    labelled = detector.label_anchors(anchors, instances)
    assignment = get_adapter(detector).assignment(detector, labelled, instances, ORACLE_HW)
    source = SimpleNamespace(
        anchors=[x.tensor.unflatten(0, size)[None] for x, size in zip(anchors, ORACLE_HW, strict=True)],
        logits=[torch.randn(len(instances), 1, NUM_CLASSES, h, w) for h, w in ORACLE_HW],
        class_dim=2,
    )
    inside_box = REGION_REGISTRY.get("inside_box")
    region = inside_box(source, None, assignment, exclude_positives=True)

    oracle = json.loads((Path(__file__).parents[2] / "golden" / "bckd_ld_oracle.json").read_text())
    (counts,) = oracle["mmdet_2.10_LD_repo"]["fcos_label_counts"]
    assert [int(x.sum()) for x in assignment.positives] == counts["pos_fcos"]
    assert [int(x.sum()) for x in region] == counts["vlr_fcos"]
    weighted = inside_box(source, None, assignment, exclude_positives=True, weighting="student_score")
    for weights, mask, logits in zip(weighted, region, source.logits, strict=True):
        torch.testing.assert_close(weights, mask * logits.sigmoid().amax(2))
