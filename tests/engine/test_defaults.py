import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from omegaconf import OmegaConf

import d2kd
from d2kd.engine import (
    ConfigError,
    amp_dtype,
    check_config,
    check_image_format,
    default_writers,
    resolve_device,
)


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = OmegaConf.create({"model": {}, "optimizer": {}, "lr_multiplier": {}})
    cfg.dataloader = {"train": {"mapper": {"image_format": "BGR"}}, "test": {}, "evaluator": {}}
    cfg.train = d2kd.get_config("common/train.py").train
    return cfg


def test_common_config_passes(cfg):
    check_config(cfg)


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.seed=-1", "train.seed is -1"),
        ("train.seed=null", "train.seed is None"),
        ("train.device=gpu", "train.device is 'gpu'"),
        ("train.device=cuda", "torch sees no GPU"),
        ("train.amp.enabled=True", "float16 needs a GPU.*bfloat16"),
        ("train.amp.dtype=half", "train.amp.dtype is 'half'"),
    ],
)
def test_wrong_values_are_named(cfg, override, message):
    with pytest.raises(ConfigError, match=message):
        check_config(LazyConfig.apply_overrides(cfg, [override]))


def test_missing_keys_are_listed(cfg):
    del cfg.train.seed, cfg.dataloader.evaluator
    with pytest.raises(ConfigError, match="dataloader.evaluator, train.seed"):
        check_config(cfg)


def test_missing_checkpoint(cfg, tmp_path):
    cfg.train.init_checkpoint = str(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match="train.init_checkpoint"):
        check_config(cfg)
    (tmp_path / "x.pth").touch()
    check_config(cfg)
    cfg.train.init_checkpoint += "?matching_heuristics=True"
    check_config(cfg)
    cfg.train.init_checkpoint = "detectron2://a/b.pkl"  # not looked up here
    check_config(cfg)


def test_a_resumed_run_does_not_read_its_first_weights(cfg, tmp_path):
    cfg.train.output_dir, cfg.train.init_checkpoint = str(tmp_path), str(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="train.init_checkpoint"):
        check_config(cfg, resume=True)  # nothing to resume: they would be read
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    check_config(cfg, resume=True)
    with pytest.raises(FileNotFoundError, match="train.init_checkpoint"):
        check_config(cfg)


def test_auto_device(monkeypatch):
    for available, expected in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda a=available: a)
        assert resolve_device("auto").type == expected


def test_amp_dtype():
    assert amp_dtype({"enabled": False, "dtype": "float16"}) is None
    assert amp_dtype({"enabled": True, "dtype": "bfloat16"}) == torch.bfloat16


def test_image_format_must_be_the_models(cfg):
    check_image_format(cfg, SimpleNamespace(input_format="BGR"))
    check_image_format(cfg, SimpleNamespace())  # Detectron2's FCOS does not say
    with pytest.raises(ConfigError, match="mapper.image_format is 'BGR', but model.input_format is 'RGB'"):
        check_image_format(cfg, SimpleNamespace(input_format="RGB"))


def test_tensorboard_is_optional(tmp_path, monkeypatch, caplog):
    assert [type(w) for w in default_writers(str(tmp_path), 5)].count(TensorboardXWriter) == 1
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with caplog.at_level(logging.WARNING):
        writers = default_writers(str(tmp_path), 5)
    assert not any(isinstance(w, TensorboardXWriter) for w in writers)
    assert any(isinstance(w, JSONWriter) for w in writers)
    assert caplog.text.count("tensorboard is not installed") == 1
