"""A step that was not finite is saved, names what is wrong, and can be run again."""

import argparse

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import hooks
from detectron2.structures import Boxes

from d2kd.cli.check_replay import add_arguments, run
from d2kd.engine import Trainer
from d2kd.engine.failed_step import load_failed_step, save_failed_step
from d2kd.modeling.distillation.non_finite import NonFiniteError
from tests.helpers import build_detector, distilled, make_batch
from tests.nodes import checkpoint_of, pair

CONFIG = """
from detectron2.config import LazyCall as L
from d2kd.config import get_config
from d2kd.modeling import DistilledDetector
from tests.helpers import build_detector, preset

model = L(DistilledDetector)(
    student=L(build_detector)(family="RetinaNet"),
    teacher=dict(model=L(build_detector)(family="RetinaNet", seed=1), checkpoint="{teacher}", engine="eager"),
    losses=L(preset)(method="bckd", family="RetinaNet"),
)
train = get_config("common/train.py").train
train.device = "cpu"
"""


@pytest.fixture
def config(tmp_path):
    teacher = checkpoint_of(L(build_detector)(family="RetinaNet", seed=1), tmp_path)
    path = tmp_path / "run.py"
    path.write_text(CONFIG.format(teacher=teacher))
    return path


def failed(folder, batch, model=None, change=None):
    """A run of d2kd's trainer that ends in a step that is not finite; its file and its sentence."""
    model = model or pair("RetinaNet", "bckd")
    for index, item in enumerate(batch):
        item["file_name"] = f"{index}.png"
    trainer = Trainer(model, [batch] * 3, torch.optim.SGD(model.parameters(), lr=1e-3), output_dir=str(folder))
    trainer.register_hooks([hooks.CallbackHook(before_step=change)] if change else [])
    with pytest.raises(NonFiniteError) as error:
        trainer.train(0, 3)
    (path,) = folder.glob("non_finite_*.pth")
    assert f"`d2kd check --replay {path} --config-file {folder}/config.yaml`" in str(error.value)
    return path, str(error.value)


def replay(path, config):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--config-file")
    parser.add_argument("overrides", nargs="*")
    return run(parser.parse_args(["--replay", str(path), "--config-file", str(config)]))


def test_the_labels_are_looked_at_first(tmp_path, config, capsys):
    batch, kind = make_batch(), "pixels that are not finite"
    batch[1]["image"] = batch[1]["image"] * float("nan")
    path, told = failed(tmp_path, batch)
    assert path.name == "non_finite_iter0_rank0.pth"
    assert told.startswith("Not finite: loss_") and "Iteration 0, rank 0: " in told and "Images: 0.png, 1.png." in told
    assert f"1.png has {kind}" in told and "learning rate" not in told
    assert replay(path, config) == 1
    out = capsys.readouterr().out
    assert f"labels: 1.png has {kind}" in out and "verdict: Not finite: loss_" in out


@pytest.mark.parametrize("where", ["weights", "outputs"])
def test_then_the_teacher(where, tmp_path):
    teacher = build_detector("RetinaNet", seed=1)
    model = distilled(build_detector("RetinaNet"), teacher, "bckd")
    if where == "weights":
        model.load_teacher()  # which refuses such weights
        teacher.head.cls_score.bias.data[1] = float("nan")
        told = "the teacher has 1 weights or statistics that are not finite (first 'head.cls_score.bias')"
    else:
        teacher.head.cls_score.register_forward_hook(lambda module, args, out: out * float("nan"))
        told = "the teacher's class logits are not finite, though its weights and the labels are"
    _, sentence = failed(tmp_path, make_batch(), model)
    assert sentence.startswith("Not finite: loss_kd_bckd_cls, loss_kd_bckd_loc. Iteration 0, rank 0: ")
    assert told in sentence and "learning rate" not in sentence and "dapter" not in sentence


def test_then_the_step(tmp_path, config, capsys):
    model = pair("RetinaNet", "bckd")

    def diverge(trainer):
        if trainer.iter == 2:
            with torch.no_grad():
                model.head.cls_score.bias.fill_(float("inf"))

    path, told = failed(tmp_path, make_batch(), model, diverge)
    assert path.name == "non_finite_iter2_rank0.pth"
    assert "1 of the student's weights are not finite (first 'head.cls_score.bias')" in told
    assert "lower the learning rate (optimizer.lr)" in told
    assert replay(path, config) == 1
    assert "(first 'head.cls_score.bias')" in capsys.readouterr().out


def test_a_step_that_is_finite_here(tmp_path, config, capsys):
    model, batch = pair("RetinaNet", "bckd"), make_batch()
    path = save_failed_step(str(tmp_path), model, batch, 7, "Not finite: loss_cls.")
    assert replay(path, config) == 0
    out = capsys.readouterr().out
    assert "iteration 7, rank 0, 2 images" in out and "training said: Not finite: loss_cls." in out
    assert "loss_kd_bckd_loc" in out and "verdict: this step is finite here" in out


def test_what_is_saved_is_what_was_given(tmp_path):
    model, batch = pair("RetinaNet", "bckd"), make_batch()
    batch[0].update(file_name="a.png", image_id=3)
    del batch[1]["instances"]
    step = load_failed_step(save_failed_step(str(tmp_path), model, batch, 7, "why"))
    assert (step.iteration, step.rank, step.error) == (7, 0, "why")
    assert all(torch.equal(step.weights[name], x) for name, x in model.state_dict().items())
    first, second = step.batch
    assert first["file_name"] == "a.png" and first["image_id"] == 3 and "instances" not in second
    ours, theirs = first["instances"], batch[0]["instances"]
    assert isinstance(ours.gt_boxes, Boxes) and torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
    assert torch.equal(ours.gt_classes, theirs.gt_classes) and ours.image_size == theirs.image_size
    assert torch.equal(first["image"], batch[0]["image"])


def test_a_file_or_a_config_that_does_not_fit(tmp_path, config):
    with pytest.raises(FileNotFoundError, match=r"no file '.*none.pth' to replay"):
        replay(tmp_path / "none.pth", config)
    with pytest.raises(ValueError, match="is no saved step"):
        replay(tmp_path / "teacher.pth", config)
    path = save_failed_step(str(tmp_path), pair("FCOS", "bckd"), make_batch(), 7, "why")
    with pytest.raises(ValueError, match="has weights of another model than .*run.py: "):
        replay(path, config)
