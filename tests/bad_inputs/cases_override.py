"""Wrong ``key=value`` overrides of a good config, and folders that a run must not write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES", "override"]


def override(text: str, says: str, given: str = "") -> BadInput:
    """One override of ``d2kd train --config-file mine.py``."""
    return run(given or f"`{text}`", lambda folder: None, text, says)


def run(given: str, prepare: Callable[[Path], object], arguments: str, says: str) -> BadInput:
    """Further ``arguments`` of it; what ``prepare`` writes is there before."""

    def make(folder: Path) -> list[str]:
        name = write_run(folder)
        prepare(folder)
        return ["train", "--config-file", name, *arguments.split()]

    return BadInput("Override", given, make, says)


def other_run(folder: Path) -> None:
    """What a run leaves in its folder, in few bytes."""
    (folder / "output").mkdir()
    (folder / "output/metrics.json").write_text('{"iteration": 0, "total_loss": 1.0}\n')
    torch.save({"model": {"w": torch.zeros(1)}, "iteration": 1}, folder / "output/model_0000001.pth")
    (folder / "output/last_checkpoint").write_text("model_0000001.pth")


CASES = [
    override(
        "train.max_iter",
        "d2kd train: 'train.max_iter' is no key=value override; options come before the overrides (d2kd train --help).",
    ),
    override(
        "train.max_itr=100",
        "d2kd train: The override 'train.max_itr=100' is for train.max_itr, which this config does not "
        "have: did you mean train.max_iter? A new key is +key=value.",
    ),
    override(
        "trian.max_iter=100",
        "d2kd train: The override 'trian.max_iter=100' is for trian, which this config does not have: "
        "did you mean train.max_iter? A new key is +key=value.",
    ),
    override(
        "max_iter=100",
        "d2kd train: The override 'max_iter=100' is for max_iter, which this config does not have: did "
        "you mean train.max_iter? A new key is +key=value.",
    ),
    override(
        "train.max_iter=",
        "d2kd train: The override 'train.max_iter=' makes train.max_iter '', expected a number, such as "
        "its present value 2 (+key=value sets it all the same).",
    ),
    override(
        "train.max_iter=abc",
        "d2kd train: The override 'train.max_iter=abc' makes train.max_iter 'abc', expected a number, "
        "such as its present value 2 (+key=value sets it all the same).",
    ),
    override("train.max_iter=-5", "d2kd train: train.max_iter is -5, expected a whole number >= 1."),
    override("train.max_iter=0", "d2kd train: train.max_iter is 0, expected a whole number >= 1."),
    override("train.max_iter=null", "d2kd train: train.max_iter is None, expected a whole number >= 1."),
    override(
        "train.max_iter.value=100",
        "d2kd train: The override 'train.max_iter.value=100' sets train.max_iter.value, but "
        "train.max_iter is 2, which has no keys: set train.max_iter itself.",
    ),
    override(
        "train.clip_grad={max_norm:10",
        "d2kd train: The override 'train.clip_grad={max_norm:10' cannot be read, expected KEY=VALUE, "
        "with brackets that are closed and special characters in quotes: KEY=\"'a text: (x)'\".",
    ),
    override(
        "train.clip_grad=10", "d2kd train: train.clip_grad is 10, expected None or max_norm > 0 and norm_type > 0."
    ),
    override("train.seed=-1", "d2kd train: train.seed is -1, expected a whole number >= 0."),
    override("train.eval_period=-1", "d2kd train: train.eval_period is -1, expected a whole number >= 0."),
    override("train.log_period=0", "d2kd train: train.log_period is 0, expected a whole number >= 1."),
    override(
        "train.checkpointer.max_to_keep=0",
        "d2kd train: train.checkpointer.max_to_keep is 0, expected a whole number >= 1.",
    ),
    override("train.ddp.timeout_minutes=0", "d2kd train: train.ddp.timeout_minutes is 0, expected a number > 0."),
    override("train.accumulate=0", "d2kd train: train.accumulate is 0, expected a whole number >= 1."),
    override(
        "train.accumulate=2",
        "d2kd train: train.accumulate would give backbone.fpn_lateral3.norm (BatchNorm2d) the statistics "
        "of a part of the batch: use frozen batch norm or group norm in the backbone, or set "
        "train.accumulate=1.",
    ),
    override(
        "optimizer.lr=abc",
        "d2kd train: The override 'optimizer.lr=abc' makes optimizer.lr 'abc', expected a number, such "
        "as its present value 0.001 (+key=value sets it all the same).",
    ),
    override("optimizer.lr=-0.1", "d2kd train: optimizer.lr is -0.1, expected a number >= 0."),
    override(
        "optimizer.lr=1e400",
        "d2kd train: The override 'optimizer.lr=1e400' makes optimizer.lr inf, expected a number that is "
        "finite, such as its present value 0.001 (+key=value sets it all the same).",
    ),
    override(
        "optimizer=adam",
        "d2kd train: The override 'optimizer=adam' makes optimizer 'adam', expected a node (KEY=VALUE "
        "inside), or null.",
    ),
    override(
        "optimizer.momentum=-1",
        "d2kd train: optimizer cannot be made: ValueError: Invalid momentum value: -1 (in "
        "torch.optim.sgd.__init__). Correct its values.",
    ),
    override(
        "lr_multiplier=0.1",
        "d2kd train: The override 'lr_multiplier=0.1' makes lr_multiplier 0.1, expected a node "
        "(KEY=VALUE inside), or null.",
    ),
    override(
        "model=fcos",
        "d2kd train: The override 'model=fcos' makes model 'fcos', expected a node (KEY=VALUE inside), or null.",
    ),
    override(
        "model.losses=7",
        "d2kd train: The override 'model.losses=7' makes model.losses 7, expected a node (KEY=VALUE "
        "inside), or null; --method takes the losses of a method.",
    ),
    override(
        "model.losses=crosskd",
        "d2kd train: The override 'model.losses=crosskd' makes model.losses 'crosskd', expected a node "
        "(KEY=VALUE inside), or null; --method takes the losses of a method.",
    ),
    override(
        "model.losses.crosskd_csl.weight=2",
        "d2kd train: The override 'model.losses.crosskd_csl.weight=2' is for model.losses.crosskd_csl, "
        "which this config does not have: did you mean model.losses.crosskd_cls.weight or "
        "model.losses.crosskd_loc.weight? A new key is +key=value.",
    ),
    override(
        "model.losses.crosskd_cls.wieght=2",
        "d2kd train: The override 'model.losses.crosskd_cls.wieght=2' is for "
        "model.losses.crosskd_cls.wieght, which this config does not have: did you mean "
        "model.losses.crosskd_cls.weight? A new key is +key=value.",
    ),
    override(
        "+model.losses.crosskd_cls.wieght=2",
        "d2kd train: model.losses.crosskd_cls: DistillationLoss.__init__() got an unexpected keyword argument 'wieght'",
    ),
    override(
        "model.losses.crosskd_cls.weight=-1",
        "d2kd train: model.losses.crosskd_cls: BinaryClassificationKD.weight is -1, expected a finite number "
        ">= 0 (0 turns the loss off).",
    ),
    run(
        "`model.losses.crosskd_cls.weight=1e30`",
        lambda folder: None,
        "model.losses.crosskd_cls.weight=1e30 train.max_iter=5",
        "d2kd train: Not finite: the student's box predictions. Iteration 1, rank 0: 43 of the student's "
        "weights are huge (above 1e+06, first 'backbone.fpn_lateral3.weight'), so an earlier step was "
        "too long: lower a weight of model.losses that is far above the others, or the learning rate "
        "(optimizer.lr), or clip gradients (train.clip_grad). Images: {folder}/images/0.png, "
        "{folder}/images/3.png. The batch is saved: `d2kd check --replay "
        "{folder}/output/non_finite_iter1_rank0.pth --config-file {folder}/output/config.yaml` runs it "
        "again.",
    ),
    override(
        "model.losses.crosskd_cls.source=both",
        "d2kd train: model.losses.crosskd_cls: BinaryClassificationKD.source is 'both', expected one of "
        "student, crossed.",
    ),
    override(
        "model.losses.crosskd_cls._target_=d2kd.losses.BinaryKD",
        "d2kd train: model.losses.crosskd_cls._target_ is 'd2kd.losses.BinaryKD', which cannot be "
        "imported: correct the name, or install its package.",
    ),
    override("model.student=null", "d2kd train: model.student is None, expected the node of a detector."),
    override(
        "model.student.backbone.norm=XX",
        "d2kd train: model cannot be made: KeyError: 'XX' (in detectron2.layers.batch_norm.get_norm). "
        "Correct its values.",
    ),
    override(
        "model.student.head_in_features=[p3,p9]",
        "d2kd train: model cannot be made: KeyError: 'p9' (in "
        "detectron2.modeling.meta_arch.fcos.__init__). Correct its values.",
    ),
    override(
        "model.student.pixel_mean=[100,100]",
        "d2kd train: dataloader.train.mapper.image_format is 'BGR', images whose channels are 3, but the "
        "model's pixel_mean has 2: make them agree.",
    ),
    override(
        "model.student.pixel_std=[0,0,0]",
        "d2kd train: model.student.pixel_std is [0.0, 0.0, 0.0], expected numbers > 0, by which pixels are divided.",
    ),
    override(
        "train.best_metric=bbox/APP",
        "d2kd train: train.best_metric is 'bbox/APP', which dataloader.evaluator does not return: did "
        "you mean bbox/AP? It returns bbox/AP, bbox/AP50, bbox/AP75, bbox/APs, bbox/APm, bbox/APl and "
        "others.",
    ),
    override(
        "train.best_metric=segm/AP",
        "d2kd train: train.best_metric is 'segm/AP', which dataloader.evaluator does not return. It "
        "returns bbox/AP, bbox/AP50, bbox/AP75, bbox/APs, bbox/APm, bbox/APl and others.",
    ),
    override(
        "train.best_metric=null", "d2kd train: train.best_metric is None, expected a metric's name, such as 'bbox/AP'."
    ),
    override(
        "train.init_checkpoint=best.pth", "d2kd train: train.init_checkpoint is 'best.pth', but there is no such file."
    ),
    override(
        "train.init_checkpoint=images",
        "d2kd train: train.init_checkpoint is 'images', which is a folder, expected a file.",
        "`train.init_checkpoint` with a folder",
    ),
    override("train.output_dir=", "d2kd train: train.output_dir is '', expected the path of a folder."),
    override(
        "train.output_dir=s3://bucket/run",
        "d2kd train: train.output_dir is 's3://bucket/run', a URL, expected the path of a local folder.",
    ),
    override(
        "train.output_dir=mine.py",
        "d2kd train: train.output_dir=mine.py is a file, expected a folder: choose another.",
        "`train.output_dir` with a file",
    ),
    override(
        "train.output_dir=mine.py/run",
        "d2kd train: train.output_dir=mine.py/run cannot be written (Not a directory): choose another.",
        "`train.output_dir` below a file",
    ),
    override(
        "train.output_dir=.",
        "d2kd train: train.output_dir=. holds the teacher's checkpoint (teacher.pth), which this run "
        "would write over: choose another folder.",
        "`train.output_dir` with the teacher's folder",
    ),
    run(
        "`train.output_dir` with another run's files",
        other_run,
        "",
        "d2kd train: train.output_dir={folder}/output has another run's files (last_checkpoint, "
        "metrics.json, model_0000001.pth): --resume goes on with it, --overwrite deletes them, or choose "
        "another folder.",
    ),
]
