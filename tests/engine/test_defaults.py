import logging
import sys

import torch
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from d2kd.engine import amp_dtype, default_writers, resolve_device


def test_auto_device(monkeypatch):
    for available, expected in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda a=available: a)
        assert resolve_device("auto").type == expected


def test_amp_dtype():
    assert amp_dtype({"enabled": False, "dtype": "float16"}) is None
    assert amp_dtype({"enabled": True, "dtype": "bfloat16"}) == torch.bfloat16


def test_tensorboard_is_optional(tmp_path, monkeypatch, caplog):
    assert [type(w) for w in default_writers(str(tmp_path), 5)].count(TensorboardXWriter) == 1
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with caplog.at_level(logging.WARNING):
        writers = default_writers(str(tmp_path), 5)
    assert not any(isinstance(w, TensorboardXWriter) for w in writers)
    assert any(isinstance(w, JSONWriter) for w in writers)
    assert caplog.text.count("tensorboard is not installed") == 1
