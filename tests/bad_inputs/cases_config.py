"""Wrong config files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detectron2.config import LazyConfig

from d2kd.methods import METHODS
from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES"]


def more(given: str, python: str, says: str) -> BadInput:
    """A good config and, at its end, what is wrong."""
    return BadInput("Config", given, lambda folder: ["train", "--config-file", write_run(folder, python)], says)


def file(given: str, name: str, content: str | Callable[[Path], str], says: str) -> BadInput:
    """A config of that name and content."""

    def make(folder: Path) -> list[str]:
        (folder / name).write_text(content if isinstance(content, str) else content(folder))
        return ["train", "--config-file", name]

    return BadInput("Config", given, make, says)


def dumped(folder: Path, more: str) -> str:
    """A run's config.yaml."""
    LazyConfig.save(LazyConfig.load(str(folder / write_run(folder, more))), str(folder / "dumped.yaml"))
    return (folder / "dumped.yaml").read_text()


DISTILL = "import d2kd\nstudent = model.student\n"

CASES = [
    BadInput(
        "Config",
        "a path without a file",
        lambda folder: ["train", "--config-file", "mine.py"],
        "d2kd train: There is no file 'mine.py', and d2kd has no config of that name.",
    ),
    BadInput(
        "Config",
        "a folder",
        lambda folder: ["train", "--config-file", str(folder)],
        "d2kd train: There is no file '{folder}', and d2kd has no config of that name.",
    ),
    file(
        "a .json",
        "mine.json",
        "{}",
        "d2kd train: mine.json is no config, expected a LazyConfig: a .py, or a .yaml that was dumped of one.",
    ),
    file(
        "an empty file",
        "mine.py",
        "",
        "d2kd train: mine.py has no model, expected a LazyConfig with a model node, L(CLASS)(...).",
    ),
    file(
        "a yacs config",
        "mine.yaml",
        "MODEL: {META_ARCHITECTURE: RetinaNet}",
        "d2kd train: mine.yaml has no model, expected a LazyConfig with a model node, L(CLASS)(...); a "
        "yacs config is distilled by the train_net.py that reads it, see docs/embedding.md.",
    ),
    file(
        "a .yaml with a syntax error",
        "mine.yaml",
        "model: [1",
        'd2kd train: mine.yaml is no YAML without code: while parsing a flow sequence in "mine.yaml", '
        "line 1, column 8 expected ',' or ']', but got '<stream end>' in \"mine.yaml\", line 1, column 10",
    ),
    file(
        "a .yaml that runs code when it is read",
        "mine.yaml",
        "model: !!python/object/apply:os.system [touch hacked]",
        "d2kd train: mine.yaml cannot be read: it has !!python/object/apply:os.system, which would run "
        "code when it is read: give the LazyConfig .py that it was made from.",
    ),
    file(
        "a .yaml whose nodes run code",
        "mine.yaml",
        "model: {_target_: os.system, command: touch hacked}",
        "d2kd train: mine.yaml cannot be read: it names os.system, and of a YAML file parts of "
        "detectors, data and schedules alone are run: give the LazyConfig .py that it was made from.",
    ),
    file(
        "a run's config.yaml whose optimizer is a program",
        "config.yaml",
        lambda folder: dumped(folder, "optimizer._target_ = 'subprocess.run'"),
        "d2kd train: config.yaml cannot be read: it names subprocess.run, and of a YAML file parts of "
        "detectors, data and schedules alone are run: give the LazyConfig .py that it was made from.",
    ),
    file(
        "a syntax error",
        "mine.py",
        "model = dict(\n",
        "d2kd train: mine.py cannot be read: Config file mine.py has syntax error! (line 1: '(' was never closed)",
    ),
    file(
        "a name that is not defined",
        "mine.py",
        "model = L(FCOS)()\n",
        "d2kd train: mine.py cannot be read: mine.py, line 1: NameError: name 'L' is not defined",
    ),
    file(
        "an import that is not installed",
        "mine.py",
        "import mmdet\n",
        "d2kd train: mine.py cannot be read: mine.py, line 1: ModuleNotFoundError: No module named 'mmdet'",
    ),
    file(
        "a relative import of a file that is not there",
        "mine.py",
        "from .base import model\n",
        "d2kd train: mine.py cannot be read: mine.py, line 1: ImportError: Cannot import name base from "
        "mine.py: base.py does not exist.",
    ),
    more(
        "no `model`",
        "del model",
        "d2kd train: mine.py has no model, expected a LazyConfig with a model node, L(CLASS)(...).",
    ),
    more(
        "a `model` that is built",
        "from detectron2.config import instantiate\nmodel = instantiate(model)",
        "d2kd train: mine.py has no model, expected a LazyConfig with a model node, L(CLASS)(...).",
    ),
    more(
        "a `model` without `_target_`",
        "model = dict(backbone=50)",
        "d2kd train: model has no _target_, so that it makes nothing: write L(CLASS)(...).",
    ),
    more(
        "no `optimizer`",
        "del optimizer",
        "d2kd train: The config lacks optimizer: configs/common/train.py has every key of `train`, and "
        "configs/common the other parts.",
    ),
    more(
        "no `dataloader`",
        "del dataloader",
        "d2kd train: The config lacks dataloader: configs/common/train.py has every key of `train`, and "
        "configs/common the other parts.",
    ),
    more(
        "no `train`",
        "del train",
        "d2kd train: The config lacks train: configs/common/train.py has every key of `train`, and "
        "configs/common the other parts.",
    ),
    more(
        "a `train` with few keys",
        "train = dict(max_iter=100)",
        "d2kd train: The config lacks train.output_dir, train.init_checkpoint, train.device, "
        "train.amp.enabled, train.ddp, train.checkpointer, train.eval_period, train.log_period: "
        "configs/common/train.py has every key of `train`, and configs/common the other parts.",
    ),
    more(
        "a misspelt key of `train`",
        "train.max_itr = 100",
        "d2kd train: train.max_itr is in the config, but nothing reads it: did you mean train.max_iter?",
    ),
    more(
        "`train.amp = True`",
        "train.amp = True",
        "d2kd train: train.amp is True, expected its keys and values, as in configs/common.",
    ),
    more(
        "a number in quotes",
        "train.max_iter = '100'",
        "d2kd train: train.max_iter is '100', expected a whole number >= 1.",
    ),
    more(
        "an optimizer without parameters",
        "del optimizer.params",
        "d2kd train: optimizer.params is None, expected a node that picks the model's parameters, such "
        "as L(get_default_optimizer_params)().",
    ),
    more(
        "a misspelt argument of the optimizer",
        "optimizer.momentun = 0.9",
        "d2kd train: optimizer cannot be made: TypeError: SGD.__init__() got an unexpected keyword "
        "argument 'momentun'. Correct its values.",
    ),
    more(
        "a reference to nothing",
        "optimizer.lr = '${train.base_lr}'",
        "d2kd train: optimizer.lr: Interpolation key 'train.base_lr' not found",
    ),
    more(
        "a schedule whose milestones do not fit",
        "from detectron2.config import LazyCall as L\nfrom fvcore.common.param_scheduler import "
        "MultiStepParamScheduler\nlr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], "
        "milestones=[6, 8, 9])",
        "d2kd train: lr_multiplier cannot be made: ValueError: MultiStep scheduler requires a list of 2 "
        "miletones (in fvcore.common.param_scheduler.__init__). Correct its values.",
    ),
    more(
        "an evaluator that is a text",
        "dataloader['evaluator'] = 'coco'",
        "d2kd train: dataloader.evaluator is 'coco', expected a node, L(CLASS)(...).",
    ),
    more(
        "`model.losses` that is a method's name",
        "model.losses = 'crosskd'",
        "d2kd train: model.losses is 'crosskd', expected losses by name, or null; --method takes the "
        "losses of a method, and so does distill(..., method=NAME).",
    ),
    more(
        "a `_target_` that does not import",
        "model.losses.crosskd_cls._target_ = 'd2kd.losses.BinaryKD'",
        "d2kd train: model.losses.crosskd_cls._target_ is 'd2kd.losses.BinaryKD', which cannot be "
        "imported: correct the name, or install its package.",
    ),
    more(
        "a student without a backbone",
        "model.student.backbone = None",
        "d2kd train: model cannot be made: AttributeError: 'NoneType' object has no attribute "
        "'output_shape' (in detectron2.modeling.meta_arch.fcos.__init__). Correct its values.",
    ),
    more(
        "`distill()` without a method",
        DISTILL + "model = d2kd.distill(student, teacher=student)",
        "d2kd train: distill() got method=None and losses=None, expected exactly one of them.",
    ),
    more(
        "`distill()` with a misspelt method",
        DISTILL + "model = d2kd.distill(student, teacher=student, method='croskd')",
        f"d2kd train: Unknown method 'croskd', expected one of {', '.join(METHODS)}; did you mean crosskd "
        "or crosskd_pkd or bckd?",
    ),
    more(
        "`distill()` of a distilled model",
        DISTILL + "model = d2kd.distill(model, teacher=student, method='crosskd')",
        "d2kd train: model is distilled already, expected the node of the student alone: give it model.student.",
    ),
    more(
        "`distill()` with a teacher's checkpoint as its config",
        DISTILL + "model = d2kd.distill(student, teacher='teacher.pth', method='crosskd')",
        "d2kd train: distill()'s teacher is 'teacher.pth', expected a yacs config (.yaml) or a "
        "LazyConfig (.py, or a dumped .yaml).",
    ),
    more(
        "`distill()` with a teacher that is built",
        DISTILL + "from detectron2.config import instantiate\nmodel = d2kd.distill(student, "
        "teacher=instantiate(student), method='crosskd')",
        "d2kd train: distill() got a FCOS that is already built as teacher, but a config must stay text, "
        "to be saved and overridden: give its node, or the path of its config file; or call "
        "DistilledDetector(..., teacher={'model': module}) yourself.",
    ),
]
