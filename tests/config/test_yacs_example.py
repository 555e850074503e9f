"""configs/yacs: the files that docs/embedding.md names."""

from pathlib import Path

import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS

import d2kd
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors import add_fcos_config
from tests.helpers import make_batch, run_step

FOLDER = Path(__file__).parents[2] / "configs/yacs"
#: A network of a few channels, for the same keys.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.BACKBONE.FREEZE_AT", 0),
]


def load(name, *more):
    cfg = get_cfg()
    d2kd.add_distillation_config(cfg)
    add_fcos_config(cfg)
    cfg.merge_from_file(str(FOLDER / name))
    cfg.merge_from_list([*SMALL, *more])
    return cfg


def test_the_student_is_distilled_from_the_teacher(tmp_path, monkeypatch):
    """The paths of the files are those that a run of the other writes."""
    monkeypatch.chdir(tmp_path)
    teacher = load("fcos_r101_teacher.yaml")
    folder = Path(teacher.OUTPUT_DIR)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(teacher.dump())  # as Detectron2's default_setup does
    DetectionCheckpointer(build_model(teacher), str(folder)).save("model_final")
    model = build_model(load("fcos_r50_crosskd.yaml"))
    assert isinstance(model, DistilledDetector) and type(model.student) is FCOS
    losses = run_step(model, make_batch(((128, 192),)))
    assert losses["loss_kd_crosskd_cls"] > 0 and losses["loss_kd_crosskd_loc"].isfinite()
    assert type(model.teacher.detector) is FCOS
    assert len(model.teacher.detector.backbone.bottom_up.res4) == 23 > len(model.backbone.bottom_up.res4)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_each_file_is_read(name):
    cfg = load(name)
    assert cfg.MODEL.FCOS.NUM_CLASSES == 80 and cfg.SOLVER.MAX_ITER == 90000
