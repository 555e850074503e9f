"""What health finds on two ranks: the same on both, at the same step."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.modeling.distillation import health
from d2kd.modeling.distillation.non_finite import NonFiniteError
from tests.helpers import build_detector, distilled, join_two, make_batch, make_losses, preset
from tests.processes import on_two_ranks


def build(**fields):
    student, teacher = (build_detector("FCOS", seed=seed, backbone_norm="FrozenBN") for seed in (0, 1))
    return distilled(student, teacher, make_losses("bckd", **fields))


def logged(model, batch, iteration):
    with EventStorage(iteration) as storage:
        model(batch)
        return {name: value for name, (value, _) in storage.latest().items()}


def error_of(model, batch, steps=1):
    """Kind, sentence and step of what stops it; the weights do not change."""
    for step in range(steps):
        try:
            logged(model, batch, step)
        except Exception as error:
            return type(error).__name__, str(error), step
    return None


def worker(rank, folder):
    torch.set_num_threads(1)
    join_two(rank, f"{folder}/store")
    own = make_batch(sizes=((32, 32),), objects=(2,) if rank else (0,), seed=rank)
    own[0]["file_name"] = f"{rank}.png"
    result = {"shares": logged(build(), own, health.FIRST_SHARE)}
    # On rank 0 there are no objects, and on rank 1 they lie outside of the image.
    outside = make_batch(sizes=((32, 32),), objects=(2,) if rank else (0,))
    outside[0]["instances"].gt_boxes.tensor.sub_(200.0)
    health.PATIENCE = 4
    result["empty"] = error_of(build(region="inside_box"), outside, 6)
    result["half empty"] = error_of(build(region="inside_box"), own, 6)
    model = build()
    result["before"] = error_of(model, own)
    if rank == 1:
        model.teacher.detector.train()
    result["teacher"] = error_of(model, own)
    model = build()
    if rank == 1:
        model.head.cls_score.bias.data.fill_(float("nan"))
    result["not finite"] = error_of(model, own)
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(worker, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_shares_are_those_of_both_together(ranks):
    names = [f"kd/{name}_gradient_share" for name in preset("bckd", "FCOS")]
    first, second = ({name: rank["shares"][name] for name in names} for rank in ranks)
    assert first == second and all(value > 0 for value in first.values())
    assert ranks[0]["shares"]["kd/objects"] == 0 and ranks[1]["shares"]["kd/objects"] == 2


def test_what_is_empty_on_both_stops_both_in_one_step(ranks):
    first, second = (rank["empty"] for rank in ranks)
    assert first == second and first[0] == "ValueError" and first[2] == 3
    assert "the region of model.losses.bckd_cls (inside_box) had been empty on all ranks" in first[1]
    assert [rank["half empty"] for rank in ranks] == [None, None]


def test_a_teacher_that_changed_on_one_rank_stops_both(ranks):
    assert [rank["before"] for rank in ranks] == [None, None]
    (kind, told, _), (own_kind, own, _) = (rank["teacher"] for rank in ranks)
    assert kind == own_kind == "ValueError" and told == f"Rank 1: {own}" and "in training mode" in own


def test_the_rank_whose_values_are_not_finite_is_named_on_both(ranks):
    (kind, told, _), (own_kind, own, _) = (rank["not finite"] for rank in ranks)
    assert (kind, own_kind) == ("FloatingPointError", NonFiniteError.__name__) and told == own
    assert "Iteration 0, rank 1: 1 of the student's weights" in own and "Images: 1.png." in own
