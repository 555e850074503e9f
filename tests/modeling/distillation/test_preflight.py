"""Preflight: a run whose teacher does not know the data is stopped, or told what to change."""

import logging
import re
from functools import partial

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler

from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation import preflight
from tests.helpers import build_detector, join_two, make_losses, preset, run_step
from tests.modeling.distillation.known_scene import make_batch, teacher
from tests.processes import on_two_ranks

LOGGER = "detectron2.d2kd.modeling.distillation.preflight"


def model_of(detector, student=None, losses=None, **node):
    student = student or build_detector("FCOS", num_classes=3)
    node = {"model": detector, "engine": "eager", **node}
    return DistilledDetector(student=student, teacher=node, losses=losses or make_losses("bckd")).train()


def train(model, steps=preflight.BATCHES + 1, batch_of=make_batch, lr=1e-3):
    """Steps of a run; returns the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        sum(run_step(model, batch_of(1000 + step), step).values()).backward()
        optimizer.step()
    return model


@pytest.fixture
def short(monkeypatch):
    """A verdict after four batches, on twelve images of theirs."""
    monkeypatch.setattr(preflight, "BATCHES", 4)
    monkeypatch.setattr(preflight, "IMAGES", 12)
    return 5


def reordered(order):
    """A teacher's classes in another order: its class i is what was class ``order[i]``."""

    def change(weights):
        for key in ("head.cls_score.weight", "head.cls_score.bias"):
            weights[key] = weights[key][list(order)]

    return change


def reset_norms(weights):
    """What is left of batch norms whose statistics were not saved."""
    for key, value in weights.items():
        if key.endswith("running_mean"):
            value.zero_()
        elif key.endswith("running_var"):
            value.fill_(1)


def stop_of(model, steps, **kwargs):
    with pytest.raises(ValueError) as error:
        train(model, steps, **kwargs)
    assert "model.teacher.preflight=off" in str(error.value)
    return str(error.value)


def test_a_teacher_that_knows_the_data(short, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        train(model_of(teacher()), short)
    (record,) = [x for x in caplog.records if x.name == LOGGER]
    assert record.levelno == logging.INFO
    assert "the teacher gives 1.00 of 24 objects the right class" in record.message
    assert "the student gives" in record.message and "gap 0." in record.message


def test_random_weights(short):
    sentence = stop_of(model_of(build_detector("FCOS", seed=9)), short)
    assert "about as good as chance" in sentence and "model.teacher.checkpoint" in sentence
    assert re.search(r"\d of its batch norms have the statistics of a new network", sentence)


def test_another_order_of_the_classes(short):
    sentence = stop_of(model_of(teacher(change=reordered([1, 2, 0]))), short)
    assert "another order" in sentence
    assert '"model.teacher.class_map={0:1,1:2,2:0}" it gives 1.00 of them the right class, now 0.00' in sentence
    train(model_of(teacher(change=reordered([1, 2, 0])), class_map={0: 1, 1: 2, 2: 0}), short)


def test_two_classes_swapped(short):
    sentence = stop_of(model_of(teacher(change=reordered([1, 0, 2]))), short)
    assert "names objects of class 0 by its class 1, 1 by its class 0" in sentence
    assert '"model.teacher.class_map={0:1,1:0,2:2}"' in sentence


def test_a_class_map_that_is_wrong(short):
    sentence = stop_of(model_of(teacher(), class_map={0: 1, 1: 0, 2: 2}), short)
    assert 'model.teacher.class_map=null "model.teacher.class_map={0:0,1:1,2:2}"' in sentence


def split(weights):
    """Its class 1 under two ids, of which 3 is that which it scores."""
    for key in ("head.cls_score.weight", "head.cls_score.bias"):
        weights[key] = torch.cat([weights[key], weights[key][1:2]])
    weights["head.cls_score.bias"][1] -= 100


def test_classes_that_are_merged(short, caplog):
    """They are known as one; another order is told with all ids of each."""
    known = teacher(change=split, num_classes=4)
    with caplog.at_level(logging.INFO, LOGGER):
        train(model_of(known, class_map={0: 0, 1: 1, 2: 2, 3: 1}), short)
    assert "the teacher gives 1.00 of 24 objects the right class" in caplog.text
    sentence = stop_of(model_of(known, class_map={0: 1, 1: 0, 2: 2, 3: 0}), short)
    assert 'model.teacher.class_map=null "model.teacher.class_map={0:0,1:1,3:1,2:2}" it gives 1.00' in sentence


def test_batch_norms_without_their_statistics(short, caplog):
    """Colours are seen without them, and no box is right any more."""
    train(model_of(teacher(change=reset_norms)), short)
    assert "The teacher knows little of this data" in caplog.text
    assert "batch norms have the statistics of a new network" in caplog.text


def test_reversed_channels(short):
    sentence = stop_of(model_of(teacher(), input_format="RGB"), short)
    assert "better with input_format=BGR than with input_format=RGB: 1.00 of 24 objects" in sentence


def test_the_other_channel_order_is_tried_on_all_images(short, monkeypatch):
    """On few of them its effect may be too small to be sure of."""
    monkeypatch.setattr("d2kd.modeling.distillation.examination.images.TRIED", 0)
    assert "better with input_format=BGR" in stop_of(model_of(teacher(), input_format="RGB"), short)


def test_other_pixel_statistics(short, caplog):
    detector = teacher(pixel_mean=[0.0, 0.0, 0.0], pixel_std=[1.0, 1.0, 1.0])
    sentence = stop_of(model_of(detector), short)
    assert "pixel_mean=[103.53,116.28,123.675] pixel_std=[57.375,57.12,58.395]" in sentence
    assert "than with pixel_mean=[0,0,0] pixel_std=[1,1,1]" in sentence


def test_a_student_that_knows_more_is_warned_of(short, monkeypatch, caplog):
    monkeypatch.setattr(preflight, "IMAGES", 32)
    student = teacher()

    def mistakes_a_class(weights):
        for key in ("head.cls_score.weight", "head.cls_score.bias"):
            weights[key][1] = weights[key][0]

    model = model_of(teacher(change=mistakes_a_class), student=student)
    train(model, short, batch_of=partial(make_batch, images=8), lr=0.0)
    assert "The student knows more of this data than its teacher" in caplog.text


def test_a_teacher_of_another_family_in_its_own_anchors(short):
    losses = {"kd": BinaryClassificationKD(source="crossed", tail=0)}
    student = build_detector("GFL", fpn=16, conv_dims=(16,))
    train(model_of(teacher(), student=student, losses=losses), short)
    random = build_detector("FCOS", seed=9, fpn=16, conv_dims=(16,))
    assert "chance" in stop_of(model_of(random, build_detector("GFL", fpn=16, conv_dims=(16,)), losses), short)


def test_losses_that_run_no_head(short):
    model = model_of(build_detector("FCOS", seed=9), losses=preset("pkd", "FCOS"))
    assert not any(loss.reads_predictions for loss in model.losses.values())
    assert "chance" in stop_of(model, short)


def test_losses_that_are_off_at_first(short):
    """Their schedule begins at 0: the verdict comes at the same step."""
    loss = BinaryClassificationKD(schedule=LinearParamScheduler(0.0, 0.0), schedule_iters=100)
    assert "chance" in stop_of(model_of(build_detector("FCOS", seed=9), losses={"kd": loss}), short)


def test_more_of_the_teachers_classes_than_the_students(short, monkeypatch):
    """Its class map takes two of three; objects of the third are background."""
    monkeypatch.setattr(preflight, "IMAGES", 24)

    def batch_of(seed):
        batch = make_batch(seed, images=8)
        for item in batch:
            classes = item["instances"].gt_classes
            item["instances"].gt_classes = torch.where(classes == 2, 0, torch.where(classes == 0, 1, 2))
        return batch

    def student():
        return build_detector("FCOS", num_classes=4)

    train(model_of(teacher(), student=student(), class_map={2: 0, 0: 1}), short, batch_of=batch_of)
    sentence = stop_of(model_of(teacher(), student=student(), class_map={0: 0, 2: 1}), short, batch_of=batch_of)
    assert '"model.teacher.class_map={0:1,2:0}"' in sentence


def test_one_class(short, caplog):
    """Where no class can be mistaken for another, objects are to be told from the background."""

    def batch_of(seed):
        batch = make_batch(seed)
        for item in batch:
            item["instances"].gt_classes.zero_()
        return batch

    def build(seed):
        return build_detector("FCOS", seed=seed, num_classes=1, width=8, fpn=16, conv_dims=(16,))

    knows = build(3)
    optimizer = torch.optim.Adam(knows.train().parameters(), lr=4e-3)
    for step in range(60):
        optimizer.zero_grad()
        sum(run_step(knows, batch_of(step)).values()).backward()
        optimizer.step()
    with caplog.at_level(logging.WARNING, LOGGER):
        train(model_of(knows.eval(), student=build(0)), short, batch_of=batch_of)
    untrained = build(9)
    torch.nn.init.constant_(untrained.head.cls_score.bias, -4.6)  # as detectors begin
    sentence = stop_of(model_of(untrained.eval(), student=build(0)), short, batch_of=batch_of)
    assert "as good as chance" in sentence


def test_few_objects_give_no_verdict(short, caplog):
    def batch_of(seed):
        batch = make_batch(seed)
        for item in batch[1:]:
            item["instances"] = item["instances"][:0]
        return batch

    with caplog.at_level(logging.INFO, LOGGER):
        train(model_of(build_detector("FCOS", seed=9)), short, batch_of=batch_of)
    assert "No verdict on the teacher: 8 labelled objects were seen on 4 images" in caplog.text


def test_images_without_labels_are_not_looked_at(short, caplog):
    def batch_of(seed):
        first, *rest = make_batch(seed)
        return [{"image": first["image"]}, *rest]

    with caplog.at_level(logging.INFO, LOGGER):
        train(model_of(teacher()), short, batch_of=batch_of)
    assert "On 12 images the teacher gives 1.00 of 24 objects" in caplog.text


@pytest.mark.parametrize("value", ["off", False])
def test_it_can_be_switched_off(short, value, caplog):
    train(model_of(build_detector("FCOS", seed=9), preflight=value), short)
    assert "model.teacher.preflight is off" in caplog.text


def test_another_value_is_refused():
    with pytest.raises(ValueError, match="model.teacher.preflight is 'no', expected 'on' or 'off'"):
        model_of(build_detector("FCOS"), preflight="no")


def test_training_is_bit_for_bit_the_same(short, monkeypatch):
    """With it and without: weights, buffers and random numbers; the mode of every module, and what it keeps."""
    outcomes = []
    for value in ("on", "off"):
        torch.manual_seed(5)
        student = build_detector("FCOS", norm="BN")
        student.backbone.bottom_up.res3.eval()  # a stage that someone froze
        model = model_of(teacher(), student=student, preflight=value)
        student.backbone.bottom_up.res3.eval()
        modes = {name: module.training for name, module in model.named_modules()}
        train(model, short + 2, lr=1e-2)
        assert {name: module.training for name, module in model.named_modules()} == modes
        outcomes.append({**model.state_dict(), "random": torch.rand(3)})
    assert outcomes[0].keys() == outcomes[1].keys()
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_nothing_is_waited_for_before_the_verdict(device, short):
    waits = []
    for value in ("on", "off"):
        model = model_of(build_detector("FCOS", seed=9), preflight=value).to(device.device)
        run_step(model, make_batch(0))
        device.reset()
        run_step(model, make_batch(1))
        waits.append(device.waits.total())
    assert waits[0] == waits[1]


def test_the_verdict_on_a_device(device, short):
    model = model_of(build_detector("FCOS", seed=9)).to(device.device)
    for step in range(short - 1):
        run_step(model, make_batch(step))
    with pytest.raises(ValueError, match="as good as chance"):
        run_step(model, make_batch(short))


def test_under_autocast_gradients_are_those_without_it(short):
    """Casts of weights that autocast keeps have no graph if they were made without one."""
    model = model_of(teacher())
    for step in range(short):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = run_step(model, make_batch(step), step)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def worker(rank, folder):
    """Ranks of which the second sees no objects."""
    torch.set_num_threads(1)
    join_two(rank, f"{folder}/store")
    preflight.BATCHES = 4
    student = build_detector("FCOS", backbone_norm="naiveSyncBN")  # whose statistics are those of both
    model, steps, sentence = model_of(build_detector("FCOS", seed=9), student=student), 0, ""
    try:
        for seed in range(preflight.BATCHES + 1):
            batch = make_batch(seed, images=3)
            for item in batch if rank else ():
                item["instances"] = item["instances"][:0]
            sum(run_step(model, batch, seed).values()).backward()
            steps += 1
    except ValueError as error:
        sentence = str(error)
    torch.save((steps, sentence), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_come_to_one_verdict_in_one_step(tmp_path):
    on_two_ranks(worker, str(tmp_path))
    (steps, sentence), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (steps, sentence) == other
    assert steps == 4 and "of 24 objects the right class" in sentence
