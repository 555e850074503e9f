"""Every leaf under configs/ builds a model that its checkpoints and its command line need."""

import ast
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

from d2kd.data.digits import SIZES
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.pairing import check_pairing

ROOT = Path(__file__).parents[2]
LEAVES = sorted(
    p.relative_to(ROOT).as_posix()
    for folder in ("aquarium", "cards", "coco", "digits")
    for p in (ROOT / "configs" / folder).glob("*.py")
)
FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.py"))
#: The runs of one detector on the digits.
COMPARED = {
    "retinanet": ("baseline", "bckd", "crosskd", "ftpd", "tid", "crosskd_pkd"),
    "fcos": ("baseline", "bckd", "crosskd", "ftpd", "tid", "crosskd_pkd"),
    "fcos_small": ("baseline", "bckd", "crosskd", "ftpd", "tid", "crosskd_pkd"),
    "gfl": ("baseline", "ld", "bckd", "crosskd", "ftpd", "tid", "crosskd_pkd"),
    "gfl_tenth": ("baseline", "crosskd"),
    "atss": ("baseline", "ld", "bckd", "crosskd"),
}


def load(path):
    cfg = LazyConfig.load(str(ROOT / path))
    if "coco" in Path(path).parts:
        for node in detectors(cfg):
            make_small(node)
    for node in detectors(cfg):
        drop_weights(node)
    return cfg


def detectors(cfg):
    """The nodes of the detectors in it: the student, and the teacher if it has one."""
    return [cfg.model.student, *([cfg.model.teacher.model] if "teacher" in cfg.model else [])]


def drop_weights(node):
    """Those of a package, which is an extra."""
    for body in ("bottom_up", "net"):
        if node.backbone.get(body) and "weights" in node.backbone[body]:
            node.backbone[body].weights = None


def make_small(node):
    """ResNet-18 in place of the real depth."""
    stages = node.backbone.bottom_up.stages
    stages.depth = 18
    stages.pop("stride_in_1x1", None)  # bottleneck blocks only


def test_every_comparison_on_the_digits_has_its_leaves():
    for detector, kinds in COMPARED.items():
        for kind in kinds:
            assert f"configs/digits/{detector}_{kind}.py" in LEAVES


@pytest.mark.parametrize("path", LEAVES)
def test_a_leaf_builds_and_its_pair_fits(path):
    cfg = load(path)
    assert {"model", "optimizer", "lr_multiplier", "dataloader", "train"} <= set(cfg)
    model = instantiate(cfg.model)
    assert isinstance(model, DistilledDetector)
    if "teacher" in Path(path).stem:
        assert not model.losses and "teacher" not in cfg.model
        return
    teacher = instantiate(cfg.model.teacher.model)
    assert cfg.model.teacher.checkpoint
    check_pairing(model.student, teacher, model.losses)
    named = Path(path).stem
    if "baseline" in named:
        assert not model.losses
    else:
        assert len(model.losses) >= 1 and all(name.split("_")[0] in named.split("_") for name in model.losses)


@pytest.mark.parametrize("path", [p for p in LEAVES if "/coco/" in p and "_r50_" in p])
def test_coco_students_are_r50_and_their_teachers_r101(path):
    """Both come from one file, which the teacher's changes."""
    cfg = LazyConfig.load(str(ROOT / path))
    assert [node.backbone.bottom_up.stages.depth for node in detectors(cfg)] == [50, 101]


@pytest.mark.parametrize("path", LEAVES)
def test_a_leaf_is_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= 25


@pytest.mark.parametrize("path", FILES)
def test_configs_import_each_other_relatively(path):
    """A leaf copied with its folder, or installed as d2kd/configs, must not find another checkout's."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert not {"configs"} & set(node.module.split(".")), path
        if isinstance(node, ast.Import):
            assert not any("configs" in name.name.split(".") for name in node.names), path


@pytest.mark.parametrize("detector", COMPARED)
def test_runs_that_are_compared_differ_in_their_losses_only(detector):
    """The baseline is its distilled runs without losses: same student, data and schedule."""
    trees = {}
    for kind in COMPARED[detector]:
        cfg = LazyConfig.load(str(ROOT / f"configs/digits/{detector}_{kind}.py"))
        assert cfg.train.output_dir.endswith(f"{detector}_{kind}")
        cfg.train.output_dir = cfg.model.losses = None
        trees[kind] = LazyConfig.to_py(cfg)
    assert all(tree == trees["baseline"] for tree in trees.values())


def test_unlabeled_images_are_all_that_a_tenth_of_the_labels_gets_more():
    """The same 8 labelled images a step as without them, and 4x as many others, none in both."""
    plain, more = (
        LazyConfig.load(str(ROOT / f"configs/digits/gfl_tenth_crosskd{suffix}.py")) for suffix in ("", "_unlabeled")
    )
    labelled, unlabeled = more.dataloader.train.dataset, more.dataloader.train.pop("unlabeled")
    assert unlabeled.names == labelled.names == "digits_train"
    (start, stop), (first, last) = labelled.images, unlabeled.images
    assert (stop - start) * 10 == SIZES["train"] and last - first == 4 * (stop - start) and first >= stop
    more.dataloader.train.total_batch_size -= more.dataloader.train.pop("unlabeled_batch_size")
    assert more.train.output_dir == f"{plain.train.output_dir}_unlabeled"
    plain.train.output_dir = more.train.output_dir = None
    assert LazyConfig.to_py(more) == LazyConfig.to_py(plain)
    plain.dataloader.train.dataset.pop("images")
    every_label = LazyConfig.load(str(ROOT / "configs/digits/gfl_crosskd.py"))
    every_label.train.output_dir = None
    assert LazyConfig.to_py(plain) == LazyConfig.to_py(every_label)


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "gfl", "atss"])
def test_a_teacher_writes_what_its_students_read(detector):
    teacher = LazyConfig.load(str(ROOT / f"configs/digits/{detector}_teacher.py"))
    student = LazyConfig.load(str(ROOT / f"configs/digits/{detector}_crosskd.py"))
    assert student.model.teacher.checkpoint == f"{teacher.train.output_dir}/model_final.pth"
    written = {key for key in instantiate(teacher.model).state_dict() if not key.startswith("distillation.")}
    assert written == set(instantiate(student.model.teacher.model).state_dict())
