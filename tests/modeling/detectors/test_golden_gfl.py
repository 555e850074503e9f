"""GFL against the numbers of its reference code, given predictions: labels, normalisers, losses and gradients."""

import pytest
import torch

import d2kd.modeling.detectors.gfl as module_under_test
from tests.helpers import run_step
from tests.modeling.distillation.golden_scene import (
    GivenHead,
    build_golden_detector,
    load_golden,
    make_scene,
    to_flat,
    to_maps,
)

SCENES = ("full", "padded", "oneempty", "allempty")


class Run:
    """A training step on one exported scene; ``expected(key)`` is what the reference has for it."""

    def __init__(self, scene, monkeypatch):
        self.arrays = load_golden("03_gfl_head.npz") | load_golden("04_05_ld_bckd_gfl.npz")
        self.scene = scene
        hw = self.arrays["level_hw"]
        self.logits, self.bins = (
            [x.requires_grad_() for x in to_maps(self.arrays[name], hw)] for name in ("stu_cls", "stu_reg")
        )
        features = [torch.zeros(2, 1, *size) for size in hw.tolist()]
        self.detector = build_golden_detector("GFL", features, GivenHead(self.logits, self.bins))
        self.batch = []
        for i in range(2):
            boxes, classes = (self.arrays[f"{scene}/gt_{x}{i}"] for x in ("boxes", "classes"))
            self.batch += make_scene([boxes], [classes], tuple(self.arrays[f"{scene}/pad_hw"][i].tolist()))
        self.means = []
        mean_over_ranks = module_under_test.mean_over_ranks
        monkeypatch.setattr(module_under_test, "mean_over_ranks", lambda x: self.means.append(x) or mean_over_ranks(x))
        self.losses = run_step(self.detector, self.batch)

    def expected(self, key):
        return self.arrays[f"gfl_{self.scene}/{key}"]


@pytest.fixture(params=SCENES)
def run(request, monkeypatch):
    return Run(request.param, monkeypatch)


def test_labels(run):
    anchors = run.detector.anchor_generator(run.detector.backbone.forward(None).values())
    assert torch.equal(torch.cat([x.tensor for x in anchors]), run.arrays["anchors_xyxy"])
    labels, boxes = run.detector.label_anchors(anchors, [x["instances"] for x in run.batch])
    labels, boxes = torch.stack(labels), torch.stack(boxes)
    valid = run.expected("label_weights") > 0
    assert torch.equal(labels >= 0, valid) and valid.all() == (run.scene != "padded")
    assert torch.equal(labels[valid], run.expected("labels")[valid])
    positive = valid & (labels != 5)
    assert positive.any() == (run.scene != "allempty")
    assert torch.equal(boxes[positive], run.expected("bbox_targets")[positive])


def test_losses(run):
    assert list(run.losses) == ["loss_cls", "loss_box_reg", "loss_dfl"]
    for ours, theirs in zip(run.losses, ("loss_cls", "loss_bbox", "loss_dfl"), strict=True):
        expected = run.expected(f"{theirs}__per_level").sum()
        torch.testing.assert_close(run.losses[ours], expected, rtol=1e-5, atol=1e-7)
        assert expected > 0 or (run.scene == "allempty" and theirs != "loss_cls")


def test_normalizers(run):
    """The number of positives, one at least an image, and the sum of their highest scores."""
    ((num_samples, score_sum),) = run.means
    assert num_samples == run.expected("num_total_samples")
    torch.testing.assert_close(score_sum, run.expected("weight_targets_sum_per_level").sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "ours, theirs, branch",
    [("loss_cls", "loss_cls", "cls"), ("loss_box_reg", "loss_bbox", "reg"), ("loss_dfl", "loss_dfl", "reg")],
)
def test_gradients(run, ours, theirs, branch):
    """Location by location, so level by level as well; no loss reaches the other branch's maps."""
    maps = run.logits if branch == "cls" else run.bins
    grads = to_flat([x[:, None] for x in torch.autograd.grad(run.losses[ours], maps, retain_graph=True)])
    if run.scene == "allempty" and branch == "reg":
        assert not grads.any()
        return
    expected = run.expected(f"{theirs}__grad_stu_{branch}")
    assert expected.count_nonzero() > 200
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    others = run.bins if branch == "cls" else run.logits
    assert all(x is None for x in torch.autograd.grad(run.losses[ours], others, allow_unused=True))


def test_a_level_adds_what_the_reference_has_for_it(monkeypatch):
    """Logits of -100 leave nothing of a level's classification loss but the positives'."""
    run = Run("allempty", monkeypatch)
    for level in range(5):
        with torch.no_grad():
            run.detector.head.maps = [[x.clone() for x in run.logits], run.bins]
            for i in range(5):
                if i != level:
                    run.detector.head.maps[0][i].fill_(-100)
        found = run_step(run.detector, run.batch)["loss_cls"]
        torch.testing.assert_close(found, run.expected("loss_cls__per_level")[level], rtol=1e-5, atol=1e-9)
