import itertools
import random

import numpy as np
import pytest
import torch

from d2kd.data.loader import build_train_loader, derive_seed

DATASET = [{"image_id": i} for i in range(7)]
#: What a run with unlabeled images adds to one without whose ``total_batch_size`` is 4.
MIXED = {"total_batch_size": 6, "unlabeled": [{"image_id": i} for i in range(100, 105)], "unlabeled_batch_size": 2}


def draw(entry):
    """A mapper that uses all three generators."""
    return entry["image_id"], random.random(), np.random.rand(), torch.rand(()).item()


def draw_dict(entry):
    """Likewise, as the dict that a batch with unlabeled images needs."""
    return {"drawn": draw(entry)}


def split(mixed, batch=6, labelled=4):
    """(labelled, unlabeled) samples of a mixed run, each in order, by their places in its batches."""
    assert len(mixed) % batch == 0
    parts = [[s for n, s in enumerate(mixed) if (n % batch < labelled) is wanted] for wanted in (True, False)]
    assert all("unlabeled" not in s for s in parts[0]) and all(s["unlabeled"] is True for s in parts[1])
    return parts


def samples(count, *, as_rank=None, total_batch_size=4, mapper=draw, **kwargs):
    """The first ``count`` samples of a loader, in order."""
    rank, ranks = as_rank or (0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
        patch.setattr("detectron2.utils.comm.get_world_size", lambda: ranks)
        patch.setattr("detectron2.data.build.get_world_size", lambda: ranks)
        kwargs = {"dataset": DATASET, "seed": 3, **kwargs}
        loader = build_train_loader(mapper=mapper, total_batch_size=total_batch_size, **kwargs)
    return list(itertools.islice(itertools.chain.from_iterable(loader), count))


def test_each_epoch_is_another_permutation():
    ids = [s[0] for s in samples(28)]
    epochs = [ids[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_seed_decides_order_and_augmentation():
    assert samples(16) == samples(16)
    assert samples(16) != samples(16, seed=4)
    by_id = {}
    for image_id, *numbers in samples(14):  # the same image is augmented anew in the next epoch
        by_id.setdefault(image_id, []).append(numbers)
    assert all(first != second for first, second in by_id.values())


def test_sample_does_not_depend_on_the_batch():
    assert samples(15, total_batch_size=5) == samples(15, total_batch_size=3)


@pytest.mark.parametrize("start", [4, 8, 20])
def test_start_continues_the_run(start):
    assert samples(12, start=start) == samples(start + 12)[start:]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    assert samples(24, num_workers=workers) == samples(24)


def test_ranks_partition_each_iteration():
    alone = samples(24)
    ranks = [samples(12, as_rank=(r, 2)) for r in range(2)]
    assert [s for pair in zip(*ranks, strict=True) for s in pair] == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_the_process_keeps_its_generators(workers):
    def state():
        numpy_state = np.random.get_state()
        return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()

    before = state()
    samples(8, num_workers=workers)
    assert state() == before


def test_the_process_keeps_its_generators_when_the_mapper_fails():
    def fail(entry):
        torch.rand(())
        raise KeyError("boom")

    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="boom"):
        samples(1, mapper=fail)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_batch_has_its_unlabeled_images_last():
    labelled, unlabeled = split(samples(60, mapper=draw_dict, **MIXED))
    assert {s["drawn"][0] for s in labelled} == set(range(7))
    ids = [s["drawn"][0] for s in unlabeled]
    epochs = [ids[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(100, 105)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_unlabeled_images_leave_the_labelled_samples_as_they_are():
    labelled, unlabeled = split(samples(60, mapper=draw_dict, **MIXED))
    assert labelled == samples(40, mapper=draw_dict)
    # Their augmentation is not that of the labelled samples of the same numbers.
    assert not {s["drawn"][1:] for s in labelled} & {s["drawn"][1:] for s in unlabeled}


@pytest.mark.parametrize("start", [6, 18, 42])
def test_start_continues_a_mixed_run(start):
    whole = samples(start + 12, mapper=draw_dict, **MIXED)
    assert samples(12, start=start, mapper=draw_dict, **MIXED) == whole[start:]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_in_a_mixed_run(workers):
    assert samples(36, num_workers=workers, mapper=draw_dict, **MIXED) == samples(36, mapper=draw_dict, **MIXED)


def test_ranks_share_both_kinds_of_an_iteration():
    alone = samples(36, mapper=draw_dict, **MIXED)
    ranks = [samples(18, as_rank=(r, 2), mapper=draw_dict, **MIXED) for r in range(2)]
    assert [s for pair in zip(*ranks, strict=True) for s in pair] == alone
    for rank in ranks:
        split(rank, batch=3, labelled=2)


def test_labels_of_unlabeled_images_are_withheld_from_the_mapper():
    def mapper(entry):
        seen.append(set(entry))
        return {"instances": "none found"}  # a mapper that drops the mark and makes labels of nothing

    seen = []
    dataset = [{"image_id": 0, "annotations": [{"category_id": 1}]}]
    mixed = samples(12, mapper=mapper, **{**MIXED, "dataset": dataset, "unlabeled": dataset})
    split(mixed)
    assert [("annotations" in keys) for keys in seen[:6]] == [True] * 4 + [False] * 2
    assert dataset[0]["annotations"] == [{"category_id": 1}]


def test_derived_seeds_do_not_collide():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    assert len({derive_seed(seed, *key) for seed in range(50) for key in keys}) == 50 * len(keys)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dataset": []}, "dataset is empty"),
        ({"seed": -1}, "seed=-1"),
        ({"start": -4}, "start=-4"),
        ({"total_batch_size": 0}, "total_batch_size is 0"),
        ({"total_batch_size": 3, "as_rank": (0, 2)}, "total_batch_size is 3.* 2 process"),
        ({"mapper": lambda entry: None}, "mapper returned None for entry . of dataloader.train.dataset"),
        ({"unlabeled_batch_size": 2}, "unlabeled_batch_size is 2, but there are no unlabeled images"),
        ({**MIXED, "unlabeled": []}, "no unlabeled images: check dataloader.train.unlabeled"),
        ({**MIXED, "unlabeled_batch_size": 0}, "unlabeled_batch_size is 0, expected a positive"),
        ({**MIXED, "unlabeled_batch_size": 6}, "unlabeled_batch_size is 6.* smaller than .*total_batch_size=6"),
        ({**MIXED, "unlabeled_batch_size": 1, "as_rank": (0, 2)}, "unlabeled_batch_size is 1.* 2 process"),
        ({**MIXED, "start": 4}, "start is 4, expected a multiple of total_batch_size=6"),
        (
            {**MIXED, "unlabeled_batch_size": 5, "mapper": lambda entry: None if entry.get("unlabeled") else entry},
            "mapper returned None for entry . of dataloader.train.unlabeled",
        ),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        samples(6, **kwargs)
