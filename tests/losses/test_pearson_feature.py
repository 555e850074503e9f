from pathlib import Path

import numpy as np
import pytest
import torch

from d2kd.losses.pearson_feature import PearsonFeatureKD
from d2kd.losses.standardize import standardized_difference
from tests.losses.fake_outputs import output, random_maps, sparse_region

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_pkd.npz")


def test_golden_pkd():
    """One level, all cells: what the detector divides by is then the number of cells."""
    student, teacher = (torch.from_numpy(GOLDEN[f"pkd_{name}"]) for name in ("student", "teacher"))
    student.requires_grad_()
    module = PearsonFeatureKD(weight=6.0)
    (region,) = module.prepare_region([torch.ones(2, 9, 4, 5)])
    sums = module(output(features=[student]), output(features=[teacher]), [region])
    loss = module.weight * (sums / region.sum()).sum()
    assert loss.item() == pytest.approx(GOLDEN["pkd_mean__out_f64"].item(), rel=1e-7)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.from_numpy(GOLDEN["pkd_mean__grad_f64"]), rtol=1e-7, atol=1e-7)


def test_defaults_are_the_papers_code():
    module = PearsonFeatureKD()
    (spec,) = module.regions
    assert (spec.name, dict(spec.options), spec.normalizer) == ("everywhere", {}, "level_locations")
    assert module.projector is None


def test_a_region_weighs_cells_after_the_statistics():
    student, teacher = random_maps(2, 6, 5, 7).requires_grad_(), random_maps(2, 6, 5, 7, seed=1)
    region = sparse_region(2, 3, 5, 7)
    module = PearsonFeatureKD(region="all_locations")
    (cells,) = module.prepare_region([region])
    loss = module.level_loss(output(features=[student]), output(features=[teacher]), 0, cells)
    difference = standardized_difference(student, teacher)  # of all cells, in no region too
    torch.testing.assert_close(loss, (region.amax(1) * difference).sum())
    (grad,) = torch.autograd.grad(loss, student)
    assert grad[region.amax(1, keepdim=True).expand_as(grad) == 0].any()


def test_a_level_of_one_cell_in_a_batch_of_one_is_zero():
    student = random_maps(1, 3, 1, 1).requires_grad_()
    loss = PearsonFeatureKD().level_loss(
        output(features=[student]), output(features=[random_maps(1, 3, 1, 1, seed=1)]), 0, torch.ones(1, 1, 1, 1)
    )
    loss.backward()
    assert loss.item() == 0 and student.grad is not None
