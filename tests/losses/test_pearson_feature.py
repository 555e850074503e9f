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
    assert module.correction == 1 and module.projector is None


@pytest.mark.parametrize("correction", [0, 1])
def test_a_region_weighs_cells_after_the_statistics(correction):
    student, teacher = random_maps(2, 6, 5, 7).requires_grad_(), random_maps(2, 6, 5, 7, seed=1)
    region = sparse_region(2, 3, 5, 7)
    module = PearsonFeatureKD(region="all_locations", correction=correction)
    (cells,) = module.prepare_region([region])
    loss = module.level_loss(output(features=[student]), output(features=[teacher]), 0, cells)
    difference = standardized_difference(student, teacher, correction=correction)  # of all cells, in no region too
    torch.testing.assert_close(loss, (region.amax(1) * difference).sum())
    (grad,) = torch.autograd.grad(loss, student)
    assert grad[region.amax(1, keepdim=True).expand_as(grad) == 0].any()


def test_the_correction_matters():
    maps = [output(features=[random_maps(1, 2, 2, 2, seed=seed)]) for seed in (0, 1)]
    losses = [PearsonFeatureKD(correction=c).level_loss(*maps, 0, torch.ones(1, 1, 2, 2)) for c in (0, 1)]
    assert losses[1].item() == pytest.approx(losses[0].item() * 3 / 4, rel=1e-4)  # (m - 1) / m


def test_a_level_of_one_cell_in_a_batch_of_one_is_zero():
    student = random_maps(1, 3, 1, 1).requires_grad_()
    loss = PearsonFeatureKD().level_loss(
        output(features=[student]), output(features=[random_maps(1, 3, 1, 1, seed=1)]), 0, torch.ones(1, 1, 1, 1)
    )
    loss.backward()
    assert loss.item() == 0 and student.grad is not None


@pytest.mark.parametrize("value", [2, -1, "1", True, None])
def test_another_correction_is_refused(value):
    with pytest.raises(ValueError, match="PearsonFeatureKD.correction is .*, expected 0 or 1"):
        PearsonFeatureKD(correction=value)


def test_a_printed_term_shows_its_correction():
    assert "region=everywhere" in repr(PearsonFeatureKD())
    assert repr(PearsonFeatureKD(correction=0)).endswith("projector_channels=None, correction=0)")
