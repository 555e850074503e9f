"""Building, checking and exporting where the device is not the CPU."""

import contextlib

import pytest
import torch

import d2kd
from d2kd.export import write_weights
from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, preset, run_step


@pytest.mark.parametrize("family", FAMILIES)
def test_check_adapter(family, device):
    on_device, on_cpu = (str(d2kd.check_adapter(build_detector(family).to(x))) for x in (device.device, "cpu"))
    assert on_device == on_cpu


def test_weights_are_exported(tmp_path, device):
    student = build_detector("GFL")
    model = distilled(student, build_detector("GFL", seed=1), preset("ld", "GFL"))
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    write_weights(d2kd.student(model.to(device.device)), tmp_path / "student.pth")
    saved = torch.load(tmp_path / "student.pth", weights_only=False)["model"]
    assert all(torch.equal(saved[name].cpu(), value) for name, value in expected.items())


def test_the_device_s_random_numbers_are_left_alone(device):
    """A baseline of the same seed draws the same ones after this."""
    random = torch.get_device_module(device.device)
    for place in (contextlib.nullcontext(), device.device):
        state, on_cpu = random.get_rng_state(), torch.get_rng_state()
        with device.device:
            torch.rand(3)
        assert not torch.equal(random.get_rng_state(), state) and torch.equal(torch.get_rng_state(), on_cpu)
        student, teacher = build_detector("FCOS").to(device.device), build_detector("FCOS", seed=1)
        state, on_cpu = random.get_rng_state(), torch.get_rng_state()
        with place:
            model = DistilledDetector(
                student=student,
                teacher=dict(model=teacher),
                losses=preset("crosskd", "FCOS", tail=1),
                tap_projector_channels=[8, 8],
            )
            model.load_teacher()
        assert torch.equal(random.get_rng_state(), state) and torch.equal(torch.get_rng_state(), on_cpu)


@pytest.mark.parametrize("family", FAMILIES)
def test_built_on_the_default_device(family, device):
    """The loader makes its batches in processes of its own, on the CPU."""
    batch = make_batch()
    with device.device:
        model = distilled(build_detector(family), build_detector(family, seed=1), preset("ftpd_tid", family)).train()
        assert {x.device.type for x in model.state_dict().values()} == {device.device.type}
        assert all(x.isfinite() for x in run_step(model, batch).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_built_without_storage(family):
    """On torch's "meta" device; storage and weights come after, and the history of distillation begins there."""
    with torch.device("meta"):
        model = distilled(build_detector(family), build_detector(family, seed=1), preset("ftpd_tid", family))
    model.to_empty(device="cpu")
    assert model.distillation.positives_per_image.tolist() == [0, 0]
    weights = distilled(build_detector(family), build_detector(family), preset("ftpd_tid", family)).state_dict()
    model.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
