"""What is refused of a config before anything is built or written, and before the first step."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf

import d2kd
from d2kd.config import load_config
from d2kd.engine import ConfigError, check_classes, check_config, check_image_format


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    node = {"_target_": "builtins.dict"}
    cfg = OmegaConf.create({"model": node, "optimizer": {**node, "params": node}, "lr_multiplier": node})
    cfg.dataloader = {"train": {**node, "mapper": {"image_format": "BGR"}}, "test": node, "evaluator": node}
    cfg.train = d2kd.get_config("common/train.py").train
    return cfg


def test_common_config_passes(cfg):
    check_config(cfg)


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.seed=-1", "train.seed is -1"),
        ("train.seed=null", "train.seed is None"),
        ("train.seed=4294967296", "train.seed is 4294967296, expected less than"),
        ("train.device=gpu", "train.device is 'gpu'"),
        ("train.device=cuda", "torch sees no GPU"),
        ("train.amp.enabled=True", "float16 needs a GPU.*bfloat16"),
        ("train.amp.dtype=half", "train.amp.dtype is 'half'"),
        ("train.max_iter=0", "^train.max_iter is 0, expected a whole number >= 1.$"),
        ("train.max_iter=2.5", "train.max_iter is 2.5, expected a whole number >= 1"),
        ("train.max_iter=abc", "train.max_iter is 'abc', expected a whole number >= 1"),
        ("train.eval_period=-1", "train.eval_period is -1, expected a whole number >= 0"),
        ("train.log_period=0", "train.log_period is 0, expected"),
        ("train.checkpointer.period=0", "train.checkpointer.period is 0, expected"),
        ("train.trainer.gather_metric_period=0", "train.trainer.gather_metric_period is 0, expected"),
        ("train.accumulate=true", "train.accumulate is True, expected"),
        ("train.ddp.timeout_minutes=0", "train.ddp.timeout_minutes is 0, expected"),
        ("dataloader.train.total_batch_size=0", "dataloader.train.total_batch_size is 0, expected"),
        ("dataloader.train.num_workers=-1", "dataloader.train.num_workers is -1, expected"),
        ("optimizer.lr=-1", "optimizer.lr is -1, expected a number >= 0"),
        ("optimizer.lr=nan", "optimizer.lr is nan, expected a number >= 0"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast', expected a number >= 0"),
        ("optimizer.lr=null", "optimizer.lr is None, expected a number >= 0"),
        ("train.checkpointer.max_to_keep=0", "max_to_keep is 0, expected a whole number >= 1"),
        ("train.output_dir=null", "train.output_dir is None, expected the path of a folder"),
        ("train.output_dir=''", "train.output_dir is '', expected the path of a folder"),
        ("model=null", "^model is null, expected a node"),
        ("optimizer=null", "^optimizer is null, expected a node"),
        ("dataloader.train=null", "^dataloader.train is null, expected a node"),
        ("train.checkpointer=null", "^train.checkpointer is null, expected its keys and values"),
    ],
)
def test_wrong_values_are_named(cfg, override, message):
    with pytest.raises(ConfigError, match=message):
        check_config(LazyConfig.apply_overrides(cfg, [override]))


@pytest.mark.parametrize(
    "value",
    ["{max_norm: 0}", "{norm_type: 2.0}", "{max_norm: 1, p: 2}", "{max_norm: 1, norm_type: 0}", "3", "{max_norm: x}"],
)
def test_clipping_that_is_none(cfg, value):
    with pytest.raises(ValueError, match="train.clip_grad is .*, expected None or max_norm > 0 and norm_type"):
        check_config(LazyConfig.apply_overrides(cfg, [f"train.clip_grad={value}"]))


def test_all_checkpoints_may_be_kept(cfg):
    cfg.train.checkpointer.max_to_keep = None
    check_config(cfg)


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


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("expected, said", [("BGR", "'BGR'"), (None, "that of the images that the model was made for")])
def test_image_format_must_not_be_null(cfg, split, expected, said):
    """As a reference to a key that is null would leave it: Detectron2 then reads what the file has."""
    cfg.dataloader.test = {**cfg.dataloader.test, "mapper": {"image_format": "BGR"}}
    cfg.model.input_format = None
    cfg.dataloader[split].mapper.image_format = "${model.input_format}"
    with pytest.raises(ConfigError, match=rf"dataloader.{split}.mapper.image_format is null, .*expected {said}: set"):
        check_image_format(cfg, SimpleNamespace(input_format=expected))


def test_image_format_must_be_the_models(cfg):
    check_image_format(cfg, SimpleNamespace(input_format="BGR"))
    check_image_format(cfg, SimpleNamespace())  # Detectron2's FCOS does not say
    with pytest.raises(ConfigError, match="mapper.image_format is 'BGR', but model.input_format is 'RGB'"):
        check_image_format(cfg, SimpleNamespace(input_format="RGB"))


@pytest.mark.parametrize(
    "image_format, channels, sentence",
    [
        ("L", 3, "image_format is 'L', images whose channels are 1, but the model's pixel_mean has 3: make"),
        (
            "BGR",
            1,
            "image_format is 'BGR', images whose channels are 3, but the model's pixel_mean has 1: make",
        ),
        ("L", 1, None),
        ("of my own", 7, None),
    ],
)
def test_image_format_must_have_the_models_channels(cfg, image_format, channels, sentence):
    cfg.dataloader.train.mapper.image_format = image_format
    model = SimpleNamespace(pixel_mean=torch.zeros(channels, 1, 1))
    if sentence is None:
        check_image_format(cfg, model)
        return
    with pytest.raises(ConfigError, match=sentence):
        check_image_format(cfg, model)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (
            ["model.losses.crosskd_cls.weight=0", "model.losses.crosskd_loc.weight=0"],
            r"weights of all model.losses \(crosskd_cls, crosskd_loc\) are 0, .* or model.losses=null to train",
        ),
        (["model.losses.crosskd_cls.tail=-1"], "model.losses.crosskd_cls: BinaryClassificationKD.tail is -1, expected"),
        (["+model.losses.crosskd_cls.tail=true"], "model.losses.crosskd_cls: BinaryClassificationKD.tail is True"),
        (["+model.losses.crosskd_cls.weight=.inf"], "model.losses.crosskd_cls: .*weight is '.inf', expected a finite"),
        (["+model.losses.crosskd_cls.answer=42"], "model.losses.crosskd_cls: .*unexpected keyword argument 'answer'"),
        (["model.losses.crosskd_loc.region=nowhere"], "model.losses.crosskd_loc: .*nowhere"),
    ],
)
def test_losses_that_cannot_be_built_or_do_nothing(overrides, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        check_config(load_config("digits/gfl_crosskd.py", overrides))


def test_losses_are_built_without_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_config(load_config("digits/fcos_crosskd_pkd.py"))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    "dataset",
    [
        {"names": "three_classes"},
        {"names": ["three_classes"]},
        {"dataset": {"names": "three_classes"}, "share": 0.5},  # of subset()
    ],
)
def test_classes_of_the_data(cfg, caplog, dataset):
    MetadataCatalog.get("three_classes").thing_classes = ["cat", "dog", "eel"]
    cfg.dataloader.train.dataset = dataset
    check_classes(cfg, SimpleNamespace(num_classes=3))
    check_classes(cfg, SimpleNamespace())  # unknown
    assert not caplog.records
    with pytest.raises(
        ConfigError,
        match=r"^three_classes \(dataloader.train.dataset\) has 3 classes, but model.num_classes is 2: set it",
    ):
        check_classes(cfg, SimpleNamespace(num_classes=2))
    with caplog.at_level(logging.WARNING):
        check_classes(cfg, SimpleNamespace(num_classes=5))
    assert "three_classes has 3 classes (cat, dog, eel), but model.num_classes is 5" in caplog.text
    cfg.dataloader.train.dataset = {"names": "never_registered"}
    check_classes(cfg, SimpleNamespace(num_classes=1))
    assert "never_registered" not in MetadataCatalog.list()
