"""
LD on GFL, ATSS and FCOS, and BCKD on GFL, against their authors' code on closed-form predictions; one image has
padding.
"""

import json

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from d2kd.methods import get_losses
from d2kd.modeling.detectors import GFL, ATSSAssigner, DistributionATSS, DistributionFCOS
from tests.helpers import PIXELS
from tests.modeling.distillation.golden_scene import (
    GOLDEN,
    LEVELS,
    STRIDES,
    GivenFeatures,
    GivenHead,
    make_scene,
    watched_step,
)

SIZES = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
# Of each image: boxes and classes. The second image is 192x224 in a batch of 256x320.
BOXES = [
    [(10, 12, 70, 90), (60, 30, 190, 168), (200, 8, 216, 20), (20, 15, 300, 240)],
    [(20, 20, 52, 48), (30.5, 10.25, 210.75, 175.5)],
]
CLASSES = [[0, 3, 4, 2], [1, 2]]
ORACLE = json.loads((GOLDEN / "bckd_ld_oracle.json").read_text())
LD_REPO, BCKD_REPO = (ORACLE[name] for name in ("mmdet_2.10_LD_repo", "mmdet_2.28.2_BCKD_repo"))


def wave(channels, a, b, scale, offset):
    """scale * sin(a n + b(level)) + offset at the flat index n of (N, C, H, W), per level."""
    maps = []
    for level, (h, w) in enumerate(SIZES):
        n = torch.arange(2 * channels * h * w, dtype=torch.float64).view(2, channels, h, w)
        maps.append((scale * torch.sin(a * n + b(level)) + offset).float())
    return maps


def build(family, cls, box, centerness):
    features = [torch.zeros(2, 1, h, w) for h, w in SIZES]
    common = dict(backbone=GivenFeatures(features), head_in_features=LEVELS, num_classes=5, **PIXELS)
    if family == "FCOS":
        return DistributionFCOS(head=GivenHead(cls, box, centerness), **common)
    head = GivenHead(cls, box) if family == "GFL" else GivenHead(cls, box, centerness)
    generator = DefaultAnchorGenerator(
        sizes=[[8 * s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.0
    )
    detector = GFL if family == "GFL" else DistributionATSS
    return detector(head=head, anchor_generator=generator, assigner=ATSSAssigner(topk=9), **common)


def step(family, losses, objects=(range(4), range(2))):
    centerness = wave(1, 0.41, lambda level: 0.5 * level, 1, 0)
    cls = wave(5, 0.37, lambda level: 0.11 * level, 1.5, -2)
    box = wave(68, 0.91, lambda level: 0.23 * level, 2, 0)
    for x in cls + box:
        x.requires_grad_()
    student = build(family, cls, box, centerness)
    teacher_cls = wave(5, 0.53, lambda level: 0.31 * level + 1, 2, -1.5)
    teacher_box = wave(68, 0.77, lambda level: 0.17 * level + 2, 2.5, 0)
    teacher = build(family, teacher_cls, teacher_box, centerness)
    boxes = [torch.tensor(x, dtype=torch.float32)[list(i)] for x, i in zip(BOXES, objects, strict=True)]
    classes = [torch.tensor(x)[list(i)] for x, i in zip(CLASSES, objects, strict=True)]
    batch = [make_scene([b], [c], size)[0] for b, c, size in zip(boxes, classes, ((256, 320), (192, 224)), strict=True)]
    return watched_step(student, teacher, losses, batch, cls=cls, box=box)


def bckd_losses():
    losses = get_losses("bckd", "GFL")
    for loss in losses.values():
        loss.normalizer, loss.skip_empty_levels = "local_positives", True
    return losses


CASES = {
    "GFL": (LD_REPO["LD_gfl_r50_fitnet"], dict(ld_main="loss_ld", ld_vlr="loss_ld_vlr", ld_main_kd="loss_kd")),
    "ATSS": (LD_REPO["LD_atss"], dict(ld_main="loss_ld", ld_vlr="loss_ld_neg", ld_main_kd="loss_cls_kd")),
    "FCOS": (LD_REPO["LD_fcos"], dict(ld_main="loss_ld", ld_vlr="loss_ld_neg", ld_main_kd="loss_cls_kd")),
}


@pytest.mark.parametrize("family", CASES)
def test_ld(family):
    theirs, names = CASES[family]
    losses = get_losses("ld", family)
    losses["ld_main_kd"].tuned_for_classes = None  # as in their code, whatever the number of classes
    run = step(family, losses)
    for ours, name in names.items():
        expected = torch.tensor(theirs[name]["per_level"])
        torch.testing.assert_close(run.levels[ours], expected, rtol=3e-5, atol=1e-7)
    if family != "FCOS":  # Detectron2's FCOS normalises its own losses otherwise
        detection = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox"}
        detection |= {"loss_dfl": "loss_dfl"} if family == "GFL" else {"loss_centerness": "loss_centerness"}
        for ours, name in detection.items():
            torch.testing.assert_close(run.found[ours].item(), theirs[name]["total"], rtol=3e-5, atol=0)
        total = sum(run.found.values())
        for maps, key in ((run.cls, "grad_cls_l2"), (run.box, "grad_box_l2")):
            grads = torch.autograd.grad(total, maps, retain_graph=True)
            norms = torch.stack([g.norm() for g in grads])
            torch.testing.assert_close(norms, torch.tensor(theirs[key]), rtol=1e-4, atol=1e-7)


def test_the_band_of_fcos_is_all_inside_the_boxes_but_the_positives():
    run = step("FCOS", get_losses("ld", "FCOS"))
    expected = ORACLE["mmdet_2.10_LD_repo"]["fcos_label_counts"][0]
    assert [int((w > 0).sum()) for w in run.regions["ld_vlr"]] == expected["vlr_fcos"]
    assert [int((w > 0).sum()) for w in run.regions["ld_main"]] == expected["pos_fcos"]


@pytest.mark.parametrize("case, objects", [("BCKD_gfl", (range(4), range(2))), ("BCKD_gfl_onegt", ([2], [0]))])
def test_bckd(case, objects):
    theirs = BCKD_REPO[case]
    run = step("GFL", bckd_losses(), objects)
    for ours, name in (("bckd_cls", "loss_kd"), ("bckd_loc", "loss_score_kd")):
        torch.testing.assert_close(run.levels[ours], torch.tensor(theirs[name]["per_level"]), rtol=3e-5, atol=1e-7)
    total = sum(run.found.values())
    for maps, key in ((run.cls, "grad_cls_l2"), (run.box, "grad_box_l2")):
        norms = torch.stack([g.norm() for g in torch.autograd.grad(total, maps, retain_graph=True)])
        torch.testing.assert_close(norms, torch.tensor(theirs[key]), rtol=1e-4, atol=1e-7)


def test_the_published_similarity_is_not_the_papers():
    """With DIoU, as the text has it, the band is another."""
    counts = {}
    for metric in ("anchor_iof", "diou"):
        losses = get_losses("ld", "GFL")
        losses["ld_vlr"].region.metric = metric
        counts[metric] = [int((w > 0).sum(dim=(1, 2, 3))[0]) for w in step("GFL", losses).regions["ld_vlr"]]
    assert counts == {"anchor_iof": [519, 197, 70, 20, 0], "diou": [189, 161, 63, 19, 0]}
