"""The trainer in two real processes: what stops both, a batch in parts, and a run that is resumed."""

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import d2kd.engine.train
from d2kd.config import load_config
from d2kd.engine import EMA_FILE, Trainer, WeightEMA, evaluate
from d2kd.engine.ranks import share_norm_statistics
from d2kd.engine.resume import check_same_start
from tests.helpers import build_detector, distilled, join_two, make_batch, run_step
from tests.processes import on_two_ranks

#: The tiny run with a GFL, distilled: no TorchScript of its losses computes otherwise in the first calls of a process.
RUN = """
from detectron2.config import LazyCall as L, LazyConfig
import d2kd
from d2kd.methods import get_losses
from tests.helpers import build_detector

_tiny = LazyConfig.load("{config}")
optimizer, lr_multiplier, dataloader, train = (
    _tiny[key] for key in ("optimizer", "lr_multiplier", "dataloader", "train")
)
dataloader.train.aspect_ratio_grouping = True
train.update(eval_period=2, clip_grad=dict(max_norm=1.0), accumulate=2, ema=dict(decay=0.5))
train.trainer.update(gather_metric_period=2, zero_grad_before_forward=True)
model = d2kd.distill(
    L(build_detector)(family="GFL", seed=1, num_classes=2, backbone_norm="FrozenBN"),
    teacher=L(build_detector)(family="GFL", width=8, num_classes=2),
    teacher_checkpoint="{checkpoint}",
    losses=get_losses("bckd", "GFL"),
)
"""


def spoiled(rank):
    """How a run ends whose second batch makes rank 1's loss infinite, and its weights then."""
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight)
    model.forward = lambda x, forward=model.forward: {"loss_a": forward(x).mean(), "loss_b": forward(x).square().mean()}
    batches = [torch.ones(2, 3), torch.full((2, 3), torch.inf if rank else 1.0), torch.ones(2, 3)]
    ddp = DistributedDataParallel(model)
    trainer = Trainer(ddp, batches, torch.optim.SGD(model.parameters(), lr=0.1), gather_metric_period=100)
    try:
        trainer.train(0, 3)
    except FloatingPointError as error:
        return str(error), trainer.iter, model.weight.detach()


def in_parts(rank, accumulate):
    """The weights after two steps of a distilled GFL."""
    teacher = build_detector("GFL", seed=1, width=8)
    model = distilled(build_detector("GFL", backbone_norm="FrozenBN"), teacher, "bckd")
    batches = [make_batch([(48, 64)] * 4, [1, 3, 0, 2], seed=seed)[2 * rank :][:2] for seed in (0, 1)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ddp = DistributedDataParallel(model, broadcast_buffers=False)
    Trainer(ddp, batches, optimizer, accumulate=accumulate).train(0, 2)
    return model.state_dict()


def averaged(rank, folder):
    """The average of two steps with batch norm, on this rank alone, and what both evaluate; rank 0 saves it."""
    model = distilled(build_detector("GFL", backbone_norm="BN"), build_detector("GFL", seed=1), "bckd")
    batches = [make_batch([(48, 64)] * 2, [1, 3], seed=2 * step + rank) for step in (0, 1)]
    ddp = DistributedDataParallel(model, broadcast_buffers=False)
    trainer = Trainer(ddp, batches, torch.optim.SGD(model.parameters(), lr=1e-3))
    ema = WeightEMA(model, 0.5, f"{folder}/averaged")
    trainer.register_hooks([ema])
    trainer.train(0, 2)
    own = {name: value.clone() for name, value in ema.model.state_dict().items()}
    share_norm_statistics(model)
    share_norm_statistics(ema.model)
    return own, ema.model.state_dict(), model.state_dict()


def in_turn(rank):
    """What both ranks say when rank 1 finds another checkpoint, and when its model fails in an evaluation."""

    def predict(batch):
        if rank == 1:
            raise ValueError("no such image")
        return [{"instances": Instances((8, 8), scores=torch.zeros(0))}]

    found = []
    for function in (
        lambda: check_same_start(2 * (1 - rank), "output"),
        lambda: evaluate(predict, [[{}], [{}]], DatasetEvaluators([])),
    ):
        try:
            function()
        except ValueError as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def run(folder, output, resume):
    """What every step of a run gave this rank, and all that is in its last checkpoint."""
    trainers = []
    d2kd.engine.train.Trainer = lambda *args, **kwargs: trainers.append(Trainer(*args, **kwargs)) or trainers[0]
    d2kd.engine.train.do_train(load_config(f"{folder}/run.py", [f"train.output_dir={output}"]), resume=resume)
    histories = trainers[0].storage.histories()
    return {name: {iteration: value for value, iteration in h.values()} for name, h in histories.items()}


def normalised(seeds, state=None):
    """
    A distilled FCOS, whose loss normaliser is a running mean of each rank's own, after a forward pass of a batch of
    each of ``seeds``; begun with ``state``.
    """
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd")
    if state is not None:
        model.load_state_dict(state)
    for seed in seeds:
        run_step(model, make_batch(objects=1 + 2 * comm.get_rank(), seed=seed))
    return model


@contextmanager
def joined(rank, store):
    torch.set_num_threads(1)
    join_two(rank, store)
    comm.create_local_process_group(2)
    yield
    torch.distributed.destroy_process_group()


def resumes(rank, folder):
    with joined(rank, f"{folder}/store2"):
        torch.save(run(folder, f"{folder}/resumed", resume=True), f"{folder}/resumed{rank}.pt")
        model = normalised([2], torch.load(f"{folder}/normalised.pt"))
        torch.save(model.student.loss_normalizer, f"{folder}/normaliser{rank}.pt")


def worker(rank, folder):
    with joined(rank, f"{folder}/store1"):
        result = {"spoiled": spoiled(rank), "parts": [in_parts(rank, accumulate) for accumulate in (1, 2)]}
        result["averaged"] = averaged(rank, folder)
        result["in turn"] = in_turn(rank)
        try:
            model = nn.Linear(1, 1)
            Trainer(model, None, torch.optim.SGD(model.parameters(), lr=0.1), async_write_metrics=True)
        except ValueError as error:
            result["refused"] = str(error)
        result["run"] = run(folder, f"{folder}/straight", resume=False)
        state = normalised([0, 1]).state_dict()
        if rank == 0:
            torch.save(state, f"{folder}/normalised.pt")
        result["normaliser"] = normalised([0, 1, 2]).student.loss_normalizer
        torch.save(result, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    DetectionCheckpointer(build_detector("GFL", width=8, num_classes=2), str(folder)).save("teacher")
    config, checkpoint = Path(__file__).with_name("tiny_retinanet.py"), folder / "teacher.pth"
    (folder / "run.py").write_text(RUN.format(config=config, checkpoint=checkpoint))
    for name in ("straight", "resumed"):
        (folder / name).mkdir()
    on_two_ranks(worker, str(folder))
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_one_ranks_infinite_loss_stops_both_before_the_step(ranks):
    (error, iteration, weight), (other_error, other_iteration, other_weight) = (rank["spoiled"] for rank in ranks)
    assert error == other_error and error.startswith("Not finite: loss_a, loss_b.")
    assert iteration == other_iteration == 1
    assert torch.equal(weight, other_weight) and weight.isfinite().all() and (weight != 1).all()


def test_parts_of_the_ranks_batches_have_the_gradients_of_the_whole(ranks):
    start = build_detector("GFL", backbone_norm="FrozenBN").state_dict()
    for whole, parts in (rank["parts"] for rank in ranks):
        assert sum(not torch.equal(whole[name], value) for name, value in start.items()) > 20
        for name, value in whole.items():
            change = (value - start.get(name, 0)).abs().max().item()
            assert (parts[name] - value).abs().max().item() <= 1e-4 * change + 1e-7 * value.abs().max().item(), name
    for name, value in ranks[0]["parts"][1].items():
        assert torch.equal(value, ranks[1]["parts"][1][name])


def test_ranks_average_the_same_weights_and_evaluate_the_main_ones_statistics(folder, ranks):
    (first, shared, latest), (second, also_shared, also_latest) = (rank["averaged"] for rank in ranks)
    saved = torch.load(folder / "averaged" / EMA_FILE)["model"]
    assert saved.keys() == first.keys() == second.keys()
    assert all(torch.equal(first[x], saved[x]) for x in saved) and all(torch.equal(shared[x], saved[x]) for x in saved)
    assert all(torch.equal(also_shared[name], saved[name]) for name in saved)
    assert all(torch.equal(latest[name], also_latest[name]) for name in latest)
    other = [name for name in saved if not torch.equal(second[name], saved[name])]
    assert other and all("running_" in name for name in other)  # each rank has images of its own


def test_what_one_rank_finds_is_said_by_both(ranks):
    (start, image), (same_start, own_image) = (rank["in turn"] for rank in ranks)
    assert start == same_start
    assert "output rank 0 finds a checkpoint after 2 iterations, rank 1 after 0 (0: none), expected the same" in start
    assert (image, own_image) == ("ValueError: Rank 1: no such image", "ValueError: no such image")


def test_metrics_in_a_thread_need_a_group_of_their_own(ranks):
    assert all("async_write_metrics is True, but" in rank["refused"] for rank in ranks)


@pytest.fixture(scope="module")
def resumed(folder, ranks):
    """New processes go on with what the first have left."""
    # Of a run that was stopped after two iterations, before it was evaluated.
    shutil.copy(folder / "straight" / "model_0000001.pth", folder / "resumed")
    (folder / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
    on_two_ranks(resumes, str(folder))
    return folder / "resumed"


def test_two_ranks_resume_bit_for_bit(folder, ranks, resumed):
    straight = folder / "straight"
    assert ranks[0]["run"]["total_loss"].keys() == {1, 3}
    for rank, whole in enumerate(rank["run"] for rank in ranks):
        steps = torch.load(folder / f"resumed{rank}.pt")
        names = {name for name in whole if not re.search(r"time|seconds|bbox/", name)}
        assert {"num_pos_anchors", "grad_norm", "lr", *(["loss_kd_bckd_cls"] if rank == 0 else [])} <= names
        for name in names:
            assert steps[name] == {i: value for i, value in whole[name].items() if i >= 2} != {}, name
    for output in (straight, resumed):
        rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        assert {row["iteration"] for row in rows if {"bbox/AP", "ema/bbox/AP"} <= row.keys()} == {1, 4}
    found, expected = (torch.load(output / "model_final.pth") for output in (resumed, straight))
    weights, whole = found["model"], expected["model"]
    assert weights.keys() == whole.keys() and all(torch.equal(value, whole[name]) for name, value in weights.items())
    averages = [torch.load(output / EMA_FILE)["model"] for output in (resumed, straight)]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    assert not all(torch.equal(value, weights[name]) for name, value in averages[0].items())
    momenta, same = (content["trainer"]["optimizer"]["state"] for content in (found, expected))
    assert momenta.keys() == same.keys() != set()
    assert all(torch.equal(momenta[key]["momentum_buffer"], same[key]["momentum_buffer"]) for key in same)


def test_each_rank_resumes_with_its_own_normaliser_and_one_alone_with_their_mean(folder, ranks, resumed):
    first, second = (rank["normaliser"] for rank in ranks)
    assert first != second
    assert [torch.load(folder / f"normaliser{rank}.pt") for rank in range(2)] == [first, second]

    state = torch.load(folder / "normalised.pt")
    saved = [state[f"distillation.loss_normalizer_{rank}"].item() for rank in range(2)]
    alone = normalised([2], state).student.loss_normalizer
    positives = (first - 0.9 * saved[0]) / 0.1  # of a batch of one object an image, which this process makes as well
    assert saved[0] != saved[1] and alone == pytest.approx(0.9 * sum(saved) / 2 + 0.1 * positives)
