"""For all tests; must not import detectron2, which those of d2kd.losses and d2kd.regions do without."""

import gc
import http.server
import logging
import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from tests.cuda_device import CudaDevice
from tests.logs import logs_of_its_own

# Without it cuBLAS refuses to run under torch.use_deterministic_algorithms(True).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Of the processes that tests start: where other tests run beside them, threads spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector leaves it alone, which saves a tenth of the tests' time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def reproducible():
    """One thread (tiny tensors: more only cost) and one seed for whatever a test draws itself."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """A command sets up the loggers of its process, here that of all tests: they are as before when a test ends."""
    with logs_of_its_own():
        yield


@pytest.fixture
def caplog(caplog, monkeypatch):
    """pytest's own; once a test has called Detectron2's setup_logger, records of its loggers no longer reach it."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    return caplog


#: Devices with the rules of a GPU: the pretended one everywhere, and CUDA where there is a GPU.
DEVICES = ("pretended", *(["cuda"] if torch.cuda.is_available() else []))


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.device) for name in DEVICES])
def device(request):
    """Each of :data:`DEVICES` in turn; a test that takes it is marked ``device``. See tests/pretended_device.py."""
    if request.param == "cuda":
        found = CudaDevice()
    else:
        from tests.pretended_device import PretendedDevice  # noqa: PLC0415 - others have a torch without such a device

        found = PretendedDevice()
    with found:
        yield found


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/served; downloads are cached in tmp_path/cache."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
