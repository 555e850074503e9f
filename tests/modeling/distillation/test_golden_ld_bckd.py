"""LD and BCKD on GFL against the numbers of their authors' code: every term and its gradient."""

import numpy as np
import pytest
import torch

from d2kd.losses import FeatureImitation
from d2kd.methods import get_losses
from tests.modeling.distillation.golden_scene import (
    GivenHead,
    build_golden_detector,
    load_golden,
    make_scene,
    to_flat,
    to_maps,
    watched_step,
)


@pytest.fixture(scope="module")
def arrays():
    return load_golden("04_05_ld_bckd_gfl.npz")


def step(arrays, losses):
    """One training step; features of 256 channels as the reference drew them."""
    hw = arrays["level_hw"]
    maps = {name: [x.requires_grad_() for x in to_maps(arrays[name], hw)] for name in ("stu_cls", "stu_reg")}
    maps |= {name: to_maps(arrays[name], hw) for name in ("tea_cls", "tea_reg")}
    for name, seed in (("stu_feat", 11), ("tea_feat", 12)):
        flat = torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (2, 257, 256))).float()
        maps[name] = [x.requires_grad_(name == "stu_feat") for x in to_maps(flat, hw)]
    student, teacher = (
        build_golden_detector("GFL", maps[f"{who}_feat"], GivenHead(maps[f"{who}_cls"], maps[f"{who}_reg"]))
        for who in ("stu", "tea")
    )
    boxes, classes = ([arrays[f"full/gt_{what}{i}"] for i in range(2)] for what in ("boxes", "classes"))
    return watched_step(student, teacher, losses, make_scene(boxes, classes, (96, 128)), maps=maps)


@pytest.fixture(scope="module")
def ld(arrays):
    losses = get_losses("ld", "GFL")
    losses["ld_main_kd"].tuned_for_classes = None  # as in their code, whatever the number of classes
    # Two images are a GPU's share of the papers' batch: the default normaliser is theirs.
    assert {x.normalizer for x in losses.values()} == {"images", "level_locations"}
    return step(arrays, losses)


@pytest.fixture(scope="module")
def bckd(arrays):
    losses = get_losses("bckd", "GFL")
    for loss in losses.values():
        loss.normalizer, loss.skip_empty_levels = "local_positives", True  # as in their code
    return step(arrays, losses)


LD = [("ld_main", "loss_ld", "reg"), ("ld_vlr", "loss_ld_vlr", "reg"), ("ld_main_kd", "loss_kd", "cls")]
BCKD = [("bckd_cls", "loss_kd", "cls"), ("bckd_loc", "loss_score_kd", "reg")]
TERMS = [("ld", *term) for term in LD] + [("bckd", *term) for term in BCKD]


@pytest.mark.parametrize("method, ours, theirs, branch", TERMS)
def test_terms(request, arrays, method, ours, theirs, branch):
    run = request.getfixturevalue(method)
    expected = arrays[f"{method}_full/{theirs}__per_level"]
    assert expected.count_nonzero() >= 2
    torch.testing.assert_close(run.levels[ours], expected, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(run.found[f"loss_kd_{ours}"], expected.sum(), rtol=2e-5, atol=0)
    (grads,) = [torch.autograd.grad(run.found[f"loss_kd_{ours}"], run.maps[f"stu_{branch}"], retain_graph=True)]
    expected = arrays[f"{method}_full/{theirs}__grad_stu_{branch}"]
    assert expected.count_nonzero() > 50
    torch.testing.assert_close(
        to_flat([x[:, None] for x in grads]), expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item()
    )


@pytest.mark.parametrize("method", ["ld", "bckd"])
def test_detection_losses(request, arrays, method):
    """BCKD's code adds 0.0002 to GFL's box weights and neither floors their sum: within 1e-4, ours are GFL's own."""
    run = request.getfixturevalue(method)
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box_reg", "loss_bbox"), ("loss_dfl", "loss_dfl")):
        expected = arrays[f"{method}_full/{theirs}__per_level"].sum()
        torch.testing.assert_close(run.found[ours], expected, rtol=1e-4, atol=0)


def test_region(ld, arrays):
    found = to_flat([x[:, :, None] for x in ld.regions["ld_vlr"]]).squeeze(2)
    torch.testing.assert_close(found, arrays["ld_full/vlr_weight"], rtol=1e-5, atol=1e-6)


def test_the_term_that_is_off(ld):
    assert ld.found["loss_kd_ld_vlr_kd"].item() == 0 and "ld_vlr_kd" not in ld.levels


@pytest.mark.parametrize("region, theirs", [("fine_grained", "ld_im_fine_full"), ("inside_box", "ld_im_fitnet_full")])
def test_feature_imitation(arrays, region, theirs):
    """Their code leaves out levels without positives; a sum of squares is what they exported of the gradient."""
    loss = FeatureImitation(weight=2.0, region=region, skip_empty_levels=True)
    run = step(arrays, {"imitation": loss})
    torch.testing.assert_close(run.levels["imitation"], arrays[f"{theirs}/loss_im__per_level"], rtol=2e-5, atol=0)
    grads = torch.autograd.grad(run.found["loss_kd_imitation"], run.maps["stu_feat"])
    squares = torch.stack([g.double().square().sum() for g in grads])
    torch.testing.assert_close(squares, arrays[f"{theirs}/loss_im__gradsumsq_feat_per_level"], rtol=2e-5, atol=1e-12)
