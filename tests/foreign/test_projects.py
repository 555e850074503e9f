"""Projects of other people under distillation: as docs/embedding.md changes them, under the trainers that they have."""

import importlib.util
import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.engine import hooks
from detectron2.layers import CycleBatchNormList
from detectron2.modeling import build_model
from omegaconf import OmegaConf

import d2kd
from d2kd.losses import FeatureImitation
from tests.foreign.projects import apply_diff, changed_lines, find_diff, train
from tests.helpers import make_batch, run_step

HERE = Path(__file__).parent
#: leaf config of the plain detector -> its folder
LEAVES = {"shared_training": "rethinking_bn", "domain_specific": "rethinking_bn", "fcos_vit": "vit"}
TEACHER = "output/teacher/model_final.pth"


def open_project(folder, tmp_path, monkeypatch):
    """A copy of the project, in which we stand."""
    root = shutil.copytree(HERE / folder, tmp_path / folder)
    monkeypatch.chdir(root)
    Path(TEACHER).parent.mkdir(parents=True)
    return root


def save_teacher(model):
    """Weights of its own, and the running statistics of a few batches."""
    for seed in range(3):
        run_step(model.train(), make_batch(seed=seed))
    DetectionCheckpointer(model, str(Path(TEACHER).parent)).save("model_final")


def assert_unchanged(teacher):
    """Weights, statistics and counters are those of the file, the mode is eval."""
    saved = torch.load(TEACHER)["model"]
    assert [name for name, x in teacher.state_dict().items() if not torch.equal(x, saved[name])] == []
    assert not any(module.training for module in teacher.modules())
    assert all(module._pos == 0 for module in teacher.modules() if isinstance(module, CycleBatchNormList))


def metrics(output_dir):
    """Each iteration's losses, as they were (a median of one value) at the first."""
    lines = [json.loads(line) for line in Path(output_dir, "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("loss_")} for line in lines]


def check_run(model, output_dir, plain_output_dir, plain):
    """What must hold of a run of three steps beside that of the plain detector; ``plain`` is built and not loaded."""
    found, expected = metrics(output_dir), metrics(plain_output_dir)
    first = {name: value for name, value in found[0].items() if not name.startswith("loss_kd_")}
    assert first == expected[0] and first.keys() < found[0].keys()
    assert found[1] != expected[1]
    assert len(found) == 3 and all(0 < value < 1e4 for line in found for value in line.values())
    assert_unchanged(model.teacher.detector)

    path = str(Path(output_dir, "model_final.pth"))
    saved = torch.load(path, weights_only=False)["model"]
    student = {name: x for name, x in saved.items() if not name.startswith("distillation.")}
    assert saved.keys() - student.keys() == {"distillation.loss_normalizer_0", "distillation.positives_per_image"}
    fresh = deepcopy(plain.state_dict())
    plain.load_state_dict(student, strict=True)
    assert any(not torch.equal(x, fresh[name]) for name, x in student.items())
    d2kd.check_adapter(plain)
    batch = make_batch(((48, 64),))
    ours, theirs = (x.eval()(batch)[0]["instances"] for x in (model, plain))
    assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def run(file, seed=3, **changes):
    """Train a LazyConfig file of the project; returns its config and model."""
    cfg = LazyConfig.load(file)
    cfg = LazyConfig.apply_overrides(cfg, [f"{key}={value}" for key, value in changes.items()])
    Path(cfg.train.output_dir).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    return cfg, train(cfg)


#: The teacher keeps the weights of its file.
AS_IT_IS = {"model.teacher.engine": "eager"}


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("method", ["crosskd", "bckd", "pkd"])
def test_lazy_projects(leaf, method, tmp_path, monkeypatch):
    root = open_project(LEAVES[leaf], tmp_path, monkeypatch)
    save_teacher(instantiate(LazyConfig.load("teacher.py").model))
    diff = find_diff(f"{leaf}_crosskd.py")
    assert changed_lines(diff) <= 5
    apply_diff(diff, root)
    file = root / f"{leaf}_crosskd.py"
    file.write_text(file.read_text().replace('method="crosskd"', f'method="{method}"'))

    plain_cfg, _ = run(f"{leaf}.py")
    cfg, model = run(file.name, **AS_IT_IS)
    assert {name for name in metrics(cfg.train.output_dir)[0] if "_kd_" in name} == {
        f"loss_kd_{name}" for name in model.losses
    }
    check_run(model, cfg.train.output_dir, plain_cfg.train.output_dir, instantiate(plain_cfg.model))


@pytest.mark.parametrize("student", ["shared_training", "domain_specific"])
def test_a_teacher_with_statistics_of_each_level(student, tmp_path, monkeypatch):
    root = open_project("rethinking_bn", tmp_path, monkeypatch)
    teacher = root / "teacher.py"
    teacher.write_text(teacher.read_text().replace(".shared_training", ".domain_specific"))
    save_teacher(instantiate(LazyConfig.load("teacher.py").model))
    apply_diff(find_diff(f"{student}_crosskd.py"), root)
    plain_cfg, _ = run(f"{student}.py")
    cfg, model = run(f"{student}_crosskd.py", **AS_IT_IS)
    assert any(isinstance(module, CycleBatchNormList) for module in model.teacher.detector.modules())
    check_run(model, cfg.train.output_dir, plain_cfg.train.output_dir, instantiate(plain_cfg.model))


def test_the_students_statistics_are_its_own(tmp_path, monkeypatch):
    """After one step they are those of a run without a teacher: nothing ran twice."""
    for leaf in ("shared_training", "domain_specific"):
        root = open_project("rethinking_bn", tmp_path / leaf, monkeypatch)
        save_teacher(instantiate(LazyConfig.load("teacher.py").model))
        apply_diff(find_diff(f"{leaf}_crosskd.py"), root)
        _, plain = run(f"{leaf}.py", **{"train.max_iter": 1})
        _, model = run(f"{leaf}_crosskd.py", **{"train.max_iter": 1})
        expected, found = dict(plain.head.named_buffers()), dict(d2kd.student(model).head.named_buffers())
        assert [name for name, x in expected.items() if not torch.equal(x, found[name])] == []
        assert expected[
            "cls_subnet.1.running_mean" if leaf == "shared_training" else "cls_subnet.1.0.running_mean"
        ].any()
        norms = [m for m in d2kd.student(model).modules() if isinstance(m, CycleBatchNormList)]
        assert len(norms) == (0 if leaf == "shared_training" else 4) and all(m._pos == 0 for m in norms)


def parameter_groups(cfg, model):
    """name -> (learning rate, weight decay)."""
    cfg = deepcopy(cfg)
    cfg.optimizer.params.model = model
    names = {id(x): name for name, x in model.named_parameters()}
    return {
        names[id(x)]: (group["lr"], group["weight_decay"])
        for group in instantiate(cfg.optimizer).param_groups
        for x in group["params"]
    }


def test_learning_rates_by_layer(tmp_path, monkeypatch):
    """Every parameter of the distilled ViT has the rate that it has in the plain one; those of losses the full one."""
    root = open_project("vit", tmp_path, monkeypatch)
    apply_diff(find_diff("fcos_vit_crosskd.py"), root)
    plain_cfg, cfg = LazyConfig.load("fcos_vit.py"), LazyConfig.load("fcos_vit_crosskd.py")
    plain = parameter_groups(plain_cfg, instantiate(plain_cfg.model))
    rates = {name: lr for name, (lr, _) in plain.items()}
    assert rates["backbone.net.pos_embed"] == pytest.approx(1e-3 * 0.7**4)
    assert rates["backbone.net.blocks.0.attn.qkv.weight"] == pytest.approx(1e-3 * 0.7**3)
    assert rates["head.cls_score.weight"] == 1e-3
    assert plain["backbone.net.pos_embed"][1] == 0.0
    assert parameter_groups(cfg, instantiate(cfg.model)) == plain

    projected = FeatureImitation(region="inside_box", normalizer="level_locations", projector_channels=[32, 32])
    cfg.model.losses = OmegaConf.create({"features": projected}, flags={"allow_objects": True})
    learning = parameter_groups(cfg, instantiate(cfg.model))
    own = {name: values for name, values in learning.items() if name not in plain}
    assert {name: learning[name] for name in plain} == plain
    assert own.keys() == {f"distillation.losses.features.projector.{x}" for x in ("weight", "bias")}
    assert {lr for lr, _ in own.values()} == {1e-3}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The yacs project: a function that imports its script as it is now."""
    root = open_project("yacs", tmp_path, monkeypatch)

    def load():
        spec = importlib.util.spec_from_file_location("project_train_net", root / "train_net.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # The logger is the process's; a file handler of this run would outlive it.
        monkeypatch.setattr(module, "setup_logger", lambda output: None)
        return module

    return load


@pytest.mark.parametrize("method", ["crosskd", "bckd"])
def test_a_yacs_project(script, method, monkeypatch):
    writer = hooks.PeriodicWriter
    monkeypatch.setattr(hooks, "PeriodicWriter", lambda writers, period: writer(writers, period=1))
    root = Path.cwd()
    torch.manual_seed(1)
    script().main("teacher.yaml", "SOLVER.MAX_ITER", 1)
    torch.manual_seed(3)
    script().main("retinanet.yaml", "OUTPUT_DIR", "output/plain")

    diff = find_diff("train_net.py")
    assert changed_lines(diff) <= 5 and "+++ b/retinanet.yaml" in diff
    apply_diff(diff, root)
    torch.manual_seed(3)
    changes = {"METHOD": method, "TEACHER_ENGINE": "eager"}
    model = script().main("retinanet.yaml", *(x for k, v in changes.items() for x in (f"MODEL.DISTILLATION.{k}", v)))

    cfg = get_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_file("output/plain/config.yaml")
    check_run(model, "output/student", "output/plain", build_model(cfg))


def test_diffs_are_applied_to_what_is_there(tmp_path):
    (tmp_path / "a").write_text("1\n2\n3\n")
    apply_diff("--- a/a\n+++ b/a\n@@ -1 +1 @@\n 1\n-2\n+4\n+5\n--- /dev/null\n+++ b/b\n@@ -0 +1 @@\n+6\n", tmp_path)
    assert (tmp_path / "a").read_text() == "1\n4\n5\n3\n" and (tmp_path / "b").read_text() == "6\n"
    with pytest.raises(ValueError, match="a has not once"):
        apply_diff("--- a/a\n+++ b/a\n@@ -1 +1 @@\n-2\n+4\n", tmp_path)
    assert changed_lines("--- a/a\n+++ b/a\n 1\n-2\n+4\n+5\n") == 2
