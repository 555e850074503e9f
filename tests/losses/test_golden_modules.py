"""The modules, level by level on whole maps, against the terms of the papers' own heads."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from d2kd.losses import (
    CenternessKD,
    DistillationLoss,
    FeatureImitation,
    LocalizationDistillation,
    SoftmaxClassificationKD,
)

GOLDEN = Path(__file__).parents[1] / "golden"
LD = np.load(GOLDEN / "04_05_ld_bckd_gfl.npz")
LD_LABELS = np.load(GOLDEN / "04_ld_labels.npz")


def levels(flat: Tensor, level_hw: np.ndarray) -> list[Tensor]:
    """(N, R, ...) to one anchor's maps per level, (N, 1, ..., H, W)."""
    maps = flat.split([int(h * w) for h, w in level_hw], dim=1)
    return [x.unflatten(1, tuple(hw)).movedim((1, 2), (-2, -1)).unsqueeze(1) for x, hw in zip(maps, level_hw.tolist())]


def bins(flat: Tensor) -> Tensor:
    return flat.unflatten(-1, (4, 17))


def level_sums(loss: DistillationLoss, source: dict, teacher: dict, region: list[Tensor]) -> Tensor:
    """(L,), each level's sum over the region."""
    source, teacher = (SimpleNamespace(class_dim=2, **x) for x in (source, teacher))
    return torch.stack([loss.level_loss(source, teacher, level, weight) for level, weight in enumerate(region)])


def assert_golden(per_level: Tensor, logits: Tensor, expected: np.ndarray, expected_grad: np.ndarray) -> None:
    assert np.count_nonzero(expected) and np.count_nonzero(expected_grad)
    torch.testing.assert_close(per_level.detach(), torch.from_numpy(expected), rtol=2e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(per_level.sum(), logits)
    torch.testing.assert_close(grad, torch.from_numpy(expected_grad), rtol=2e-5, atol=1e-6)


@pytest.fixture
def ld() -> SimpleNamespace:
    inputs = {name: torch.from_numpy(LD[name]) for name in ("stu_cls", "stu_reg", "tea_cls", "tea_reg")}
    for name in ("stu_cls", "stu_reg"):
        inputs[name].requires_grad_()
    positive = torch.from_numpy(LD_LABELS["ld_full/labels"] < inputs["stu_cls"].shape[-1]).float()
    return SimpleNamespace(**inputs, positive=positive, hw=LD["level_hw"])


@pytest.mark.parametrize("name, divisor", [("loss_ld", 1), ("loss_ld_vlr", 4)])
def test_localization_distillation(ld, name, divisor):
    """Weight 0.25. The valuable region's sum over edges is divided by 16, of which four are the mean over edges."""
    score = ld.stu_cls.detach().sigmoid().amax(-1)
    flat = torch.from_numpy(LD["ld_full/vlr_weight"]) if name == "loss_ld_vlr" else ld.positive * score
    student, teacher = ({"box_params": levels(bins(x), ld.hw)} for x in (ld.stu_reg, ld.tea_reg))
    per_level = level_sums(LocalizationDistillation(), student, teacher, levels(flat, ld.hw)) * 0.25 / divisor
    assert_golden(per_level, ld.stu_reg, LD[f"ld_full/{name}__per_level"], LD[f"ld_full/{name}__grad_stu_reg"])


def test_softmax_classification(ld):
    """Weight 10, mean over each level's positives."""
    region = levels(ld.positive, ld.hw)
    student, teacher = ({"logits": levels(x, ld.hw)} for x in (ld.stu_cls, ld.tea_cls))
    sums = level_sums(SoftmaxClassificationKD(), student, teacher, region)
    per_level = 10 * sums / torch.stack([weight.sum() for weight in region]).clamp(min=1)
    assert_golden(per_level, ld.stu_cls, LD["ld_full/loss_kd__per_level"], LD["ld_full/loss_kd__grad_stu_cls"])


@pytest.mark.parametrize("case", ["ld_im_fine_full", "ld_im_fitnet_full"])
def test_feature_imitation(ld, case):
    """Weight 2, mean over the region's cells and channels; levels without positives are skipped there."""
    features = [np.random.default_rng(seed).integers(-1, 2, (2, 257, 256)) for seed in (11, 12)]
    student, teacher = ([x.squeeze(1) for x in levels(torch.from_numpy(flat).float(), ld.hw)] for flat in features)
    for x in student:
        x.requires_grad_()
    loss = FeatureImitation(normalizer="level_locations")
    region = loss.prepare_region(levels(torch.from_numpy(LD[f"{case}/im_region"]), ld.hw))
    cells = torch.stack([weight.sum() for weight in region])
    sums = level_sums(loss, {"features": student}, {"features": teacher}, region)
    kept = torch.tensor([weight.any() for weight in levels(ld.positive, ld.hw)])
    per_level = torch.where(kept, 2 * sums / cells.clamp(min=1), 0)
    torch.testing.assert_close(per_level.detach(), torch.from_numpy(LD[f"{case}/loss_im__per_level"]))
    grads = torch.autograd.grad(per_level.sum(), student)
    squares = torch.stack([grad.double().square().sum() for grad in grads])
    expected = torch.from_numpy(LD[f"{case}/loss_im__gradsumsq_feat_per_level"])
    torch.testing.assert_close(squares, expected, rtol=1e-5, atol=1e-12)


def test_crosskd_on_gfl():
    """Weight 4, T = 1, sum over bins, weighted mean over all locations."""
    golden = np.load(GOLDEN / "06_crosskd_gfl.npz")
    hw = golden["level_hw"]
    crossed, teacher = (torch.from_numpy(golden[f"pred/{name}_reg"]) for name in ("reused", "tea"))
    crossed.requires_grad_()
    weight = torch.from_numpy(golden["pred/tea_cls"]).sigmoid().amax(-1)
    loss = LocalizationDistillation(source="crossed", temperature=1.0, bin_reduction="sum")
    maps = ({"box_params": levels(bins(x), hw)} for x in (crossed, teacher))
    per_level = 4 * level_sums(loss, *maps, levels(weight, hw)) / weight.sum()
    assert_golden(per_level, crossed, golden["loss_reg_kd__per_level"], golden["loss_reg_kd__grad_reused_reg"])


def test_crosskd_on_atss():
    """Weight 1, the positives, over their number."""
    golden = np.load(GOLDEN / "06_crosskd_atss.npz")
    hw = golden["level_hw"]
    crossed, teacher = (torch.from_numpy(golden[f"pred/{name}_ctr"]).squeeze(-1) for name in ("reused", "tea"))
    positive = torch.from_numpy(golden["tgt/labels"] < golden["pred/tea_cls"].shape[-1]).float()
    maps = ({"centerness": levels(x, hw)} for x in (crossed, teacher))
    sums = level_sums(CenternessKD(source="crossed"), *maps, levels(positive, hw))
    expected = torch.from_numpy(golden["losses_center_kd__per_level"])
    assert expected.any()
    torch.testing.assert_close(sums / float(golden["tgt/avg_factor"]), expected, rtol=2e-5, atol=1e-6)
