"""Overrides of a command line: which keys exist, what is suggested for others, types."""

import pytest

from d2kd.config import load_config

CONFIG = "digits/gfl_crosskd.py"


@pytest.mark.parametrize(
    "override, sentence",
    [
        (
            "train.max_iters=2",
            "The override 'train.max_iters=2' is for train.max_iters, which this config does not have: did you mean "
            "train.max_iter? A new key is +key=value.",
        ),
        (
            "optimiser.lr=1",
            "The override 'optimiser.lr=1' is for optimiser, which this config does not have: did you mean "
            "optimizer.lr? A new key is +key=value.",
        ),
        ("lr=1", "did you mean optimizer.lr? "),
        ("model.num_classes=3", "did you mean model.student.num_classes or model.student.head.num_classes? "),
        ("optimizer.momentum=0.9", "is for optimizer.momentum, which this config does not have. A new key"),
        ("model.losses.croskd_loc=null", "did you mean model.losses.crosskd_loc or model.losses.crosskd_cls? "),
        ("model.teacher.precison=bf16", "did you mean model.teacher.precision? "),
        ("train.amp={enabled: true, dtyp: bfloat16}", "is for train.amp.dtyp, .*did you mean train.amp.dtype? "),
        ("train.clip_grad.max_nrm=1", "did you mean train.clip_grad.max_norm? "),
        ("model.losses.new={_target_: x}", "is for model.losses.new, which this config does not have. A new key"),
        (
            "model.teacher.class_map.0=1",
            "sets model.teacher.class_map.0, but model.teacher.class_map is null in this config: set "
            "model.teacher.class_map as a whole, or add the key with +model.teacher.class_map.0=1.",
        ),
    ],
)
def test_a_key_that_does_not_exist_is_refused_with_the_nearest(override, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?").replace("+", r"\+")):
        load_config(CONFIG, [override])


def test_keys_that_training_reads_are_suggested_before_others(tmp_path):
    """``teacher`` is a key of this config, but not what is trained with."""
    file = tmp_path / "distilled.py"
    file.write_text("teacher = dict(width=1)\nmodel = dict(student=dict(backbone=dict(width=2)))\n")
    with pytest.raises(ValueError, match=r"did you mean model.student.backbone.width or teacher.width\?"):
        load_config(str(file), ["model.width=3"])


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("train.max_iter=abc", "makes train.max_iter 'abc', expected a number, such as its present value 2000 "),
        ("model.losses.crosskd_cls.tail=true", "tail True, expected a number, such as its present value 1 "),
        ("model.losses.crosskd_cls.weight=.inf", "weight '.inf', expected a number, such as its present value 1.0 "),
        ("model.losses.crosskd_cls.weight=inf", "weight inf, expected a number that is finite, such as its"),
        ("train.output_dir=2024", "output_dir 2024, expected a text, such as its present value 'output/digits/gfl_"),
        ("train.amp.enabled=1", "enabled 1, expected true or false, such as its present value False "),
        ("model.losses=false", "makes model.losses False, expected a node .*, or null"),
        ("train.checkpointer=3", "makes train.checkpointer 3, expected a node"),
        ("dataloader.train.pin_memory=yes", "pin_memory 'yes', expected true or false, such as its present value"),
    ],
)
def test_a_value_of_another_type_is_refused(override, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_config(CONFIG, [override])


@pytest.mark.parametrize(
    "override",
    [
        "train.max_iter=3",
        "model.losses.crosskd_cls.weight=2",
        "model.losses.crosskd_cls.skip_empty_levels=true",  # an argument of a base class
        "model.teacher.precision=bf16",
        "model.teacher.class_map={0: 1, 2: 0}",
        "model.student.backbone.bottom_up.stem.norm=BN",
        "dataloader.train.num_workers=2",
        "dataloader.train.aspect_ratio_grouping=true",
        "dataloader.train.dataset.sizes={train: 8, val: 8, test: 8}",  # data: its names are no keys
        "dataloader.evaluator.output_dir=x",
        "optimizer.betas=[0.9, 0.99]",
        "train.clip_grad.max_norm=3",
        "train.cudnn_benchmark=true",  # read by Detectron2's default_setup
        "train.ddp.static_graph=true",
        "train.checkpointer.file_prefix=model",
    ],
)
def test_arguments_and_keys_that_are_read_exist(override):
    load_config(CONFIG, [override])


def test_a_train_made_for_detectron2_has_the_keys_that_d2kd_reads(tmp_path):
    (tmp_path / "mine.py").write_text("model = {}\ntrain = dict(max_iter=7)")
    cfg = load_config(str(tmp_path / "mine.py"), ["train.ddp.timeout_minutes=3", "train.accumulate=2"])
    assert (cfg.train.ddp.timeout_minutes, cfg.train.accumulate) == (3, 2)


def test_a_new_key_and_another_type_on_purpose():
    cfg = load_config(CONFIG, ["+mine.answer=42", "+train.seed=none", "mine.answer=43"])
    assert (cfg.mine.answer, cfg.train.seed) == (43, "none")


def test_keys_of_a_method_without_losses():
    with pytest.raises(ValueError, match="model.losses is null in this config"):
        load_config(CONFIG, ["model.losses.crosskd_cls.weight=2"], method="alone")


def test_arguments_of_a_target_that_takes_any(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from detectron2.config import LazyCall as L\ndef any_of(**kwargs): pass\nmodel = L(any_of)(a=1)"
    )
    assert load_config(str(tmp_path / "mine.py"), ["model.b=2"]).model.b == 2
