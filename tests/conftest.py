"""For all tests; must not import detectron2, which those of d2kd.losses and d2kd.regions do without."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible():
    """One thread (tiny tensors: more only cost) and one seed for whatever a test draws itself."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def caplog(caplog, monkeypatch):
    """pytest's own; once a test has called Detectron2's setup_logger, records of its loggers no longer reach it."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    return caplog


@pytest.fixture
def pretended_device():
    """A device with the rules of a GPU; see tests/pretended_device.py."""
    from tests.pretended_device import PretendedDevice  # noqa: PLC0415 - other tests have a torch without such a device

    with PretendedDevice() as device:
        yield device
