import itertools
import random

import numpy as np
import pytest
import torch

from d2kd.data.loader import build_train_loader, derive_seed

DATASET = [{"image_id": i} for i in range(7)]


def draw(entry):
    """A mapper that uses all three generators."""
    return entry["image_id"], random.random(), np.random.rand(), torch.rand(()).item()


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
        ({"mapper": lambda entry: None}, "mapper returned None"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        samples(1, **kwargs)
