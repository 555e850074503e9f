"""MODEL.DISTILLATION.TEACHER_*: a teacher from a config file of its own, yacs or LazyConfig."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch import RetinaNet

from d2kd.config.teacher_file import build_teacher
from d2kd.modeling.detectors import GFL
from tests.helpers import LEVELS, build_detector, make_batch, run_step
from tests.yacs_projects import (
    ABSENT,
    KEY,
    TINY,
    assert_same_weights,
    plain,
    save,
    wrapped,
    write_config,
    write_teacher,
)

#: What messages of a teacher's file call it, for readers of either kind of config.
BOTH = rf"model.teacher.model.config \(in a yacs config: {KEY}.TEACHER_CONFIG\)"


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path)


def lazy(path, text):
    path.write_text("from detectron2.config import LazyCall as L\nfrom tests.helpers import build_detector\n" + text)
    return str(path)


LAZY = 'data = dict(k=3)\nmodel = L(build_detector)(family="RetinaNet", num_classes="${data.k}", seed=1)\n'
DISTILLED = LAZY.replace("model", "_plain") + (
    "from d2kd.modeling import DistilledDetector\nmodel = L(DistilledDetector)(student=_plain)\n"
)


@pytest.mark.parametrize("text", [LAZY, DISTILLED], ids=["plain", "distilled"])
@pytest.mark.parametrize("kind", ["py", "yaml"])
def test_a_lazyconfig_teacher(tmp_path, text, kind):
    path = lazy(tmp_path / "teacher.py", text)
    if kind == "yaml":  # as a run dumps it beside its checkpoint
        cfg = LazyConfig.load(path)
        path = str(tmp_path / "config.yaml")
        LazyConfig.save(cfg, path)
    weights = save(build_detector("RetinaNet", seed=1), tmp_path)
    keys = dict(TEACHER_CONFIG=path, TEACHER_WEIGHTS=weights, TEACHER_ENGINE="eager", TEACHER_TRUST=["tests"])
    model = build_model(wrapped(METHOD="crosskd", **keys))
    assert not model.teacher.is_loaded
    assert run_step(model, make_batch())["loss_kd_crosskd_cls"].item() > 0
    assert_same_weights(model.teacher.detector, build_detector("RetinaNet", seed=1))


def test_a_yacs_teacher_is_built_late_from_its_own_file(teacher):
    cfg = wrapped(METHOD="bckd", TEACHER_ENGINE="eager", **teacher)
    text = Path(teacher["TEACHER_CONFIG"]).read_text()
    path = Path(teacher["TEACHER_CONFIG"])
    path.unlink()
    model = build_model(cfg)  # does not read it
    # Its values, not the student's; and keys that a project added to its configs.
    path.write_text(
        text.replace("PRIOR_PROB: 0.01", "PRIOR_PROB: 0.25").replace("DEVICE: cpu", "DEVICE: cuda:7\n  OURS: 1")
    )
    detector = build_teacher(str(path))
    assert detector.device.type == "cpu"
    assert detector.head.cls_score.bias.detach().sigmoid().mean().item() == pytest.approx(0.25)
    assert not model.teacher.is_loaded
    model.load_teacher()
    saved = torch.load(teacher["TEACHER_WEIGHTS"], weights_only=False)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.teacher.detector.state_dict().items())


def test_a_yacs_file_that_leaves_defaults_out(tmp_path):
    path = tmp_path / "gfl.yaml"
    path.write_text(
        "VERSION: 2\nMODEL:\n  META_ARCHITECTURE: GFL\n  BACKBONE: {NAME: own_backbone}\n"
        f"  GFL: {{IN_FEATURES: {LEVELS}, NORM: '', NUM_CLASSES: 3}}\n"
    )
    detector = build_teacher(str(path))
    assert type(detector) is GFL and detector.num_classes == 3 and detector.head.reg_max == 16


def test_averaged_weights(teacher):
    content = torch.load(teacher["TEACHER_WEIGHTS"], weights_only=False)
    weights = {key: value + 1 for key, value in content["model"].items()}
    torch.save({**content, "ema": weights}, teacher["TEACHER_WEIGHTS"])
    model = build_model(wrapped(METHOD="bckd", TEACHER_ENGINE="eager", TEACHER_WEIGHTS_ENTRY="ema", **teacher))
    model.load_teacher()
    assert torch.equal(model.teacher.detector.head.bbox_pred.bias, weights["head.bbox_pred.bias"])


def test_a_teacher_that_was_distilled_itself(tmp_path):
    path = write_config(wrapped(METHOD="bckd", **ABSENT), tmp_path / "config.yaml")
    middle = build_model(wrapped(METHOD="bckd", LOSSES=["bckd_cls.weight=2"], **ABSENT))
    keys = {"TEACHER_CONFIG": path, "TEACHER_WEIGHTS": save(middle, tmp_path)}
    model = build_model(wrapped(METHOD="bckd", TEACHER_ENGINE="eager", **keys))
    model.load_teacher()
    assert type(model.teacher.detector) is RetinaNet
    assert_same_weights(model.teacher.detector, middle)


def test_missing_files_are_named_when_training_starts(teacher):
    for key in ABSENT:
        model = build_model(wrapped(METHOD="bckd", **{**teacher, key: ABSENT[key]}))
        model.eval()(make_batch())
        with pytest.raises(FileNotFoundError, match=f"is '{ABSENT[key]}', but there is no such file") as error:
            run_step(model.train(), make_batch())
        assert f"{KEY}.{key}" in str(error.value)


def test_a_checkpoint_of_another_model(teacher):
    path = Path(teacher["TEACHER_CONFIG"])
    path.write_text(path.read_text().replace("NUM_CONVS: 2", "NUM_CONVS: 3"))
    with pytest.raises(ValueError, match="TEACHER_WEIGHTS with TEACHER_CONFIG of MODEL.DISTILLATION"):
        build_model(wrapped(METHOD="bckd", **teacher)).load_teacher()


def test_a_teacher_that_d2kd_cannot_read(tmp_path):
    path = write_config(get_cfg(), tmp_path / "rcnn.yaml")
    with pytest.raises(ValueError, match=f"{BOTH} is '.*rcnn.yaml', in which MODEL.META_ARCHITECTURE is 'GeneralizedR"):
        build_teacher(path)
    for model in ("train = dict(seed=1)", "train = dict(seed=1)\nmodel = dict(a=1)", "model = [1]"):
        with pytest.raises(ValueError, match=f"{BOTH} is '.*without.py', a LazyConfig without a `model` node"):
            build_teacher(lazy(tmp_path / "without.py", model))
    for text in ("", "- 1\n"):
        (tmp_path / "keyless.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"{BOTH} is '.*keyless.yaml', a file without keys"):
            build_teacher(str(tmp_path / "keyless.yaml"))
    with pytest.raises(TypeError, match=f"{BOTH} is '.*linear.py': torch.*Linear is no DenseDetector"):
        build_teacher(
            lazy(tmp_path / "linear.py", "import torch\nmodel = L(torch.nn.Linear)(in_features=1, out_features=1)\n")
        )


def test_a_teacher_config_of_another_kind_is_refused_at_once():
    with pytest.raises(ValueError, match=f"{KEY}.TEACHER_CONFIG is 'teacher.json', expected a yacs config"):
        build_model(wrapped(METHOD="bckd", **{**ABSENT, "TEACHER_CONFIG": "teacher.json"}))


def test_the_teachers_channel_order(tmp_path):
    path = lazy(tmp_path / "teacher.py", LAZY.replace("seed=1", 'seed=1, input_format="RGB"'))
    weights = save(build_detector("RetinaNet", seed=1), tmp_path)
    keys = dict(METHOD="bckd", TEACHER_CONFIG=path, TEACHER_WEIGHTS=weights)
    model = build_model(wrapped(**keys))
    model.load_teacher()
    assert model.teacher.input_format == "RGB"
    with pytest.raises(ValueError, match="'BGR', but the RetinaNet itself has input_format='RGB'") as error:
        build_model(wrapped(TEACHER_INPUT_FORMAT="BGR", **keys)).load_teacher()
    assert f"{KEY}.TEACHER_INPUT_FORMAT" in str(error.value)


@META_ARCH_REGISTRY.register()
class Unaware(RetinaNet):
    """It keeps no channel order of its own, as Detectron2's FCOS."""

    def __init__(self, cfg):
        super().__init__(cfg)
        del self.input_format


@pytest.mark.parametrize("format", ["BGR", "RGB"])
def test_a_yacs_teacher_has_its_files_channel_order(tmp_path, format):
    for name in ("RetinaNet", "Unaware"):
        cfg = plain(TINY, "MODEL.META_ARCHITECTURE", name, "INPUT.FORMAT", format)
        assert build_teacher(write_config(cfg, tmp_path / "x.yaml")).input_format == format


def test_a_distilled_teachers_file_that_does_not_say_of_what(tmp_path):
    (tmp_path / "x.yaml").write_text("VERSION: 2\nMODEL:\n  META_ARCHITECTURE: DistilledDetector\n")
    with pytest.raises(ValueError, match=f"{BOTH} is '.*x.yaml', in which {KEY}.STUDENT_META_ARCHITECTURE is ''"):
        build_teacher(str(tmp_path / "x.yaml"))


def test_its_preflight(teacher):
    assert build_model(wrapped(METHOD="bckd", **teacher)).teacher.preflight
    assert not build_model(wrapped(METHOD="bckd", TEACHER_PREFLIGHT=False, **teacher)).teacher.preflight


def test_its_precision_and_engine(teacher):
    model = build_model(wrapped(METHOD="bckd", TEACHER_PRECISION="bf16", **teacher))
    assert run_step(model, make_batch())["loss_kd_bckd_cls"].item() > 0
    assert {x.dtype for x in model.teacher.detector.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"model.teacher.engine is 'fast', .* MODEL.DISTILLATION.TEACHER_ENGINE"):
        build_model(wrapped(METHOD="bckd", TEACHER_ENGINE="fast", **teacher))
