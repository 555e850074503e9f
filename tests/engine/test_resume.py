"""Going on with a run whose config has changed, and weights that fit in part: what is said, what is refused."""

import shutil

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from d2kd.checkpoint import LayoutError, MisfitError
from d2kd.engine import ConfigError, ResumeError, differences
from tests.engine.test_train import CONFIG, metrics, run

DISTILLED = """
import d2kd
from detectron2.config import LazyCall as L, LazyConfig
from d2kd.losses import BinaryClassificationKD, PearsonFeatureKD
_tiny = LazyConfig.load("{config}")
optimizer, lr_multiplier = _tiny.optimizer, _tiny.lr_multiplier
dataloader, train = _tiny.dataloader, _tiny.train
losses = dict(kd=L(BinaryClassificationKD)(), pkd=L(PearsonFeatureKD)(projector_channels=[16, 16]))
model = d2kd.distill(_tiny.model, teacher=_tiny.model, teacher_checkpoint="{checkpoint}", losses=losses)
train.eval_period = 0
"""


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """A config, its teacher and a run of two iterations."""
    path = tmp_path_factory.mktemp("resume")
    torch.save({"model": instantiate(LazyConfig.load(CONFIG).model).state_dict()}, path / "teacher.pth")
    (path / "distilled.py").write_text(DISTILLED.format(config=CONFIG, checkpoint=path / "teacher.pth"))
    run(path / "run", "train.max_iter=2", config=str(path / "distilled.py"))
    return path


@pytest.fixture
def resume(folder, tmp_path):
    """Goes on with a copy of that run; returns its folder."""
    shutil.copytree(folder / "run", tmp_path / "run")

    def go_on(*overrides):
        run(tmp_path / "run", "--resume", "train.max_iter=4", *overrides, config=str(folder / "distilled.py"))
        return tmp_path / "run"

    go_on.folder = tmp_path / "run"
    return go_on


def test_what_has_changed_is_said_and_runs(resume):
    output = resume(
        "optimizer.lr=0.5", "optimizer.momentum=0.1", "train.seed=7", "dataloader.train.total_batch_size=2",
        "model.losses.kd=null",
    )  # fmt: skip
    log = (output / "log.txt").read_text()
    assert "--resume with another config than the run had so far; new values hold from its last checkpoint on: " in log
    for change in (
        "optimizer.lr was 0.01, is 0.5",
        "optimizer.momentum was 0.9, is 0.1",
        "train.seed was 1, is 7",
        "dataloader.train.total_batch_size was 4, is 2",
        "model.losses.kd was {_target_}, is null",
        "train.max_iter was 2, is 4",
    ):
        assert change in log
    assert "train.output_dir was" not in log
    rows = metrics(output)
    assert (rows[1]["lr"], rows[3]["lr"]) == (0.01, 0.5)  # and not the checkpoint's, as torch would have it
    (group, *_) = torch.load(output / "model_final.pth", weights_only=False)["trainer"]["optimizer"]["param_groups"]
    assert (group["momentum"], group["initial_lr"]) == (0.1, 0.5)
    recorded = LazyConfig.load(str(output / "config.yaml"))
    assert (recorded.optimizer.lr, recorded.train.seed) == (0.5, 7)


def test_the_same_config_is_not_said_to_have_changed(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    run(tmp_path / "run", "--resume", "train.max_iter=2", config=str(folder / "distilled.py"))
    assert "--resume with another config" not in (tmp_path / "run" / "log.txt").read_text()


PROJECTOR = r"\(distillation.losses.pkd.projector.weight, distillation.losses.pkd.projector.bias\)"


@pytest.mark.parametrize(
    "overrides, found",
    [
        (["model.losses.pkd=null"], f"2 that it does not train {PROJECTOR}"),
        (["model.losses=null"], f"2 that it does not train {PROJECTOR}"),
        (
            ["+model.losses.more={_target_: d2kd.losses.PearsonFeatureKD, projector_channels: [16, 16]}"],
            r"2 that the checkpoint has no state of \(distillation.losses.more.projector.weight, .*bias\)",
        ),
        (["model.student.backbone.bottom_up.freeze_at=1"], r"3 that it does not train \(backbone.bottom_up.stem.conv1"),
        (["optimizer.params.weight_decay_norm=0.5"], r"the same ones in other groups \(optimizer.params\)"),
    ],
)
def test_other_parameters_are_named_with_both_ways_out(resume, overrides, found):
    before = (resume.folder / "config.yaml").read_text()
    sentence = f"^--resume cannot go on: the checkpoint's optimizer has other parameters than this run, {found}"
    with pytest.raises(ResumeError, match=sentence) as error:
        resume(*overrides)
    assert "restore the config" in str(error.value) and "with train.init_checkpoint=CHECKPOINT" in str(error.value)
    assert (resume.folder / "config.yaml").read_text() == before  # which is to be restored


def test_another_model_is_refused(resume):
    sentence = r"^--resume cannot go on: the checkpoint is of another model \(missing, 4: head\..*Either restore "
    with pytest.raises(ResumeError, match=sentence):
        resume("model.student.head.conv_dims=[16, 16]")


def test_a_checkpoint_without_names_of_parameters(resume):
    """As Detectron2's own trainer writes it."""
    file = resume.folder / "model_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint["trainer"]["parameters"]
    torch.save(checkpoint, file)
    with pytest.raises(ResumeError, match=r"groups of \[\d+, 5\] parameters|groups of \[\d+"):
        resume("model.losses.pkd=null")
    resume()


def test_first_weights_that_fit_in_part_are_said(folder, tmp_path):
    weights = torch.load(folder / "teacher.pth")["model"]
    backbone = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    torch.save({"model": {**backbone, "roi_heads.x": torch.zeros(1)}}, tmp_path / "backbone.pth")
    torch.save({"model": {"some.other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    short = ("train.max_iter=1", "train.eval_period=0")
    run(tmp_path / "run", *short, f"train.init_checkpoint={tmp_path / 'backbone.pth'}")
    log = (tmp_path / "run" / "log.txt").read_text()
    trained = [key for key in weights if not key.endswith("num_batches_tracked") and "pixel_" not in key]
    fitting = sum(key.startswith("backbone.") for key in trained)
    assert f"{fitting} of the model's {len(trained)} weights are those of train.init_checkpoint=" in log
    assert f"missing, {len(trained) - fitting}: head." in log and "unexpected, 1: roi_heads.x" in log
    with pytest.raises(MisfitError, match=rf"other.pth has none of the model's {len(trained)} weights"):
        run(tmp_path / "other", *short, f"train.init_checkpoint={tmp_path / 'other.pth'}")


def test_first_weights_that_are_not_finite_are_refused(folder, tmp_path):
    """And not taken for a learning rate that is too high."""
    weights = torch.load(folder / "teacher.pth")["model"]
    weights["head.cls_score.bias"][0] = float("nan")
    torch.save({"model": weights}, tmp_path / "nan.pth")
    sentence = (
        r"^train.init_checkpoint: .*nan.pth has weights that are not finite, 1: head.cls_score.bias; give another"
    )
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "run", f"train.init_checkpoint={tmp_path / 'nan.pth'}")


def test_an_optimizer_that_refuses_its_values(tmp_path):
    with pytest.raises(ValueError, match="^optimizer cannot be made: ValueError: Invalid momentum value: -1"):
        run(tmp_path / "run", "optimizer.momentum=-1")


def test_weights_that_fit_in_part_are_not_evaluated(folder, tmp_path):
    config, file = str(folder / "distilled.py"), tmp_path / "part.pth"
    weights = torch.load(folder / "teacher.pth")["model"]
    torch.save({"model": {key: value for key, value in weights.items() if key.startswith("backbone.")}}, file)
    shutil.copytree(folder / "run", output := tmp_path / "run")
    before = (output / "config.yaml").read_text()
    sentence = r"part.pth is a backbone alone, .*; --allow-partial evaluates it all the same, with random values for"
    with pytest.raises(LayoutError, match=sentence):
        run(tmp_path / "refused", "--eval-only", f"train.init_checkpoint={file}", config=config)
    results = run(output, "--eval-only", "--allow-partial", f"train.init_checkpoint={file}", config=config)
    assert "bbox" in results
    assert "weights that do not fit the model (--allow-partial)" in (output / "log.txt").read_text()
    assert (output / "config.yaml").read_text() == before  # it is that of the training
    # The plain student's, and a distilled run's for the plain student, are complete.
    run(tmp_path / "a", "--eval-only", f"train.init_checkpoint={folder / 'teacher.pth'}", config=config)
    run(tmp_path / "b", "--eval-only", f"train.init_checkpoint={folder / 'run' / 'model_final.pth'}")


@pytest.mark.parametrize("override", ["train.max_iter=0", "model.losses.kd.tail=-1", "train.max_iters=3"])
def test_nothing_is_written_before_a_refusal(folder, tmp_path, override):
    with pytest.raises((ConfigError, ValueError)):
        run(tmp_path / "new", override, config=str(folder / "distilled.py"))
    assert not (tmp_path / "new").exists()


def test_differences():
    before = "a: {b: 1, c: [1, {h: 2, i: 3}]}\nd: x\ne: {f: 1}\ntrain: {output_dir: a, init_checkpoint: ''}"
    after = "a: {b: 1.5, c: [1, {h: 2, i: 4}]}\ne: null\ng: [1]\ntrain: {output_dir: b, init_checkpoint: x.pth}"
    assert differences(before, before) == []
    assert differences(before, after) == [
        "a.b was 1, is 1.5",
        "a.c[1].i was 3, is 4",
        "d was x, is not set",
        "e was {f}, is null",
        "g was not set, is [1]",
    ]
