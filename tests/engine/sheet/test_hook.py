"""Sheets while training: of the same images, without a trace in the weights, and on several ranks."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2kd.engine import Trainer
from d2kd.engine.sheet import SheetWriter, sheet_writers
from tests.helpers import build_detector, distilled, join_two, make_batch
from tests.processes import on_two_ranks


def images():
    return [("first", make_batch([(40, 48)], 2, seed=7)[0]), ("second", make_batch([(64, 32)], 0, seed=8)[0])]


def no_names():
    raise ValueError("no names")


def train(period, steps=4, names=lambda: None):
    """The weights after some steps, the optimizer's state, and the sheets that were put into the storage."""
    model = distilled(build_detector("RetinaNet"), build_detector("RetinaNet", seed=1, width=8), "crosskd").train()
    model.load_teacher()
    world = comm.get_world_size()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    batches = [make_batch(seed=10 * comm.get_rank() + seed) for seed in range(steps)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    trainer = Trainer(wrapped, batches, optimizer)
    if period:
        trainer.register_hooks([SheetWriter(period, model, images, names)])
    torch.manual_seed(0)
    with torch.jit.optimized_execution(False):  # as do_train
        trainer.train(0, steps)
    drawn = [(name, step, image) for name, image, step in trainer.storage._vis_data]
    torch.rand(1)
    return {**model.state_dict(), "normalizer": torch.tensor(float(model.student.loss_normalizer))}, drawn


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def test_weights_are_the_same_bit_for_bit():
    (plain, none), (seen, drawn) = train(0), train(2)
    assert equal(plain, seen) and not none
    assert [(name, step) for name, step, _ in drawn] == [("sheet/0", 1), ("sheet/1", 1), ("sheet/0", 3), ("sheet/1", 3)]
    for _, _, image in drawn:
        assert image.shape[0] == 3 and image.shape[2] == 1120 and image.dtype == np.uint8
    first, _, later, _ = (image for _, _, image in drawn)
    assert not np.array_equal(first, later)  # the student has learnt


def worker(rank, folder):
    torch.set_num_threads(1)
    join_two(rank, f"{folder}/store")
    comm.create_local_process_group(2)
    (plain, _), (seen, drawn) = train(0), train(2)
    with pytest.raises(ValueError, match="no names"):  # where the main one cannot draw, both stop
        train(1, steps=1, names=no_names)
    torch.save((equal(plain, seen), len(drawn)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_of_two_ranks_the_main_one_draws_and_both_train_the_same(tmp_path):
    on_two_ranks(worker, str(tmp_path))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [(True, 4), (True, 0)]


def test_a_step_that_is_not_finite_has_no_sheet(caplog):
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd").train()
    model.load_teacher()
    nn.init.constant_(model.head.cls_score.bias, torch.nan)
    hook = SheetWriter(1, model, images)

    class Stub:
        iter = 0

    hook.trainer = Stub()
    hook.before_train()
    with caplog.at_level(logging.WARNING):
        hook.after_step()
    assert "There is no sheet of first at iteration 0: Not finite" in caplog.text


def test_without_an_image_with_objects_it_is_said_once(caplog):
    hook = SheetWriter(1, distilled(build_detector("FCOS")), list)
    with caplog.at_level(logging.WARNING):
        hook.before_train()
    assert [x.getMessage() for x in caplog.records] == [
        "No image of dataloader.test has objects: no sheets are drawn (train.vis_period)."
    ]


@pytest.mark.parametrize("what", ["off", "plain", "alone"])
def test_without_anything_to_see_there_is_no_hook(what, caplog):
    cfg = LazyConfig.load("configs/common/train.py")
    cfg.train.vis_period = 0 if what == "off" else 10
    student = build_detector("FCOS")
    model = student if what == "plain" else distilled(student)
    with caplog.at_level(logging.INFO, logger="detectron2"):
        assert sheet_writers(cfg, model) == []
    assert ("nothing is distilled" in caplog.text) == (what != "off")
