import itertools
import os
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image

from d2kd.data import SampleError, build_train_loader
from d2kd.data.samples import derive_seed

DATASET = [{"image_id": i} for i in range(7)]
#: What a run with unlabeled images adds to one without whose ``total_batch_size`` is 4.
MIXED = {"total_batch_size": 6, "unlabeled": [{"image_id": i} for i in range(100, 105)], "unlabeled_batch_size": 2}


@pytest.fixture(autouse=True)
def workers_end_at_once(monkeypatch):
    """Torch waits as many seconds for a worker that has failed."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)


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
    with pytest.raises(SampleError, match="boom"):
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
    labels = [{"category_id": 1, "bbox": [0, 0, 4, 4]}]
    dataset = [{"image_id": 0, "annotations": labels}]
    mixed = samples(12, mapper=mapper, **{**MIXED, "dataset": dataset, "unlabeled": dataset})
    split(mixed)
    assert [("annotations" in keys) for keys in seen[:6]] == [True] * 4 + [False] * 2
    assert dataset[0]["annotations"] is labels


def test_derived_seeds_do_not_collide():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    assert len({derive_seed(seed, *key) for seed in range(50) for key in keys}) == 50 * len(keys)


# ---- aspect-ratio grouping -------------------------------------------------------------------------------------------

#: 17 wide images, then 6 that are not (one of them square).
SHAPES = [{"image_id": i, "width": 4, "height": 3} for i in range(17)]
SHAPES += [{"image_id": i, "width": 3, "height": 3 + i % 2} for i in range(17, 23)]
GROUPED = {"dataset": SHAPES, "aspect_ratio_grouping": True}


def test_grouped_batches_are_of_one_group_but_for_two_an_epoch():
    for batch in (4, 6):
        epochs = 6
        ids = [s[0] for s in samples(23 * batch * epochs, total_batch_size=batch, **GROUPED)]
        for n in range(0, len(ids), 23):
            assert sorted(ids[n : n + 23]) == list(range(23))
        mixed = [len({image < 17 for image in ids[n : n + batch]}) == 2 for n in range(0, len(ids), batch)]
        assert sum(mixed) <= 2 * batch * epochs
        assert 0 < sum(mixed) < len(mixed) / 2


@pytest.mark.parametrize("ranks, workers", [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_a_grouped_run_continues_at_any_iteration(ranks, workers):
    whole = samples(4 * 14, **GROUPED)  # beyond two ends of epochs, of which none ends a batch
    for iteration in range(0, 13, 1 if workers == 0 else 5):
        parts = [
            samples(8 // ranks, as_rank=(rank, ranks), start=4 * iteration, num_workers=workers, **GROUPED)
            for rank in range(ranks)
        ]
        assert [s for both in zip(*parts, strict=True) for s in both] == whole[4 * iteration :][:8]


def test_a_dataset_smaller_than_a_batch_is_grouped():
    ids = [s[0] for s in samples(30, total_batch_size=10, dataset=SHAPES[14:20], aspect_ratio_grouping=True)]
    assert all(sorted(ids[n : n + 6]) == list(range(14, 20)) for n in range(0, 30, 6))


def test_labelled_and_unlabeled_images_are_grouped_apart():
    kwargs = {**MIXED, **GROUPED, "mapper": draw_dict, "unlabeled": SHAPES[10:]}
    labelled, unlabeled = split(samples(240, **kwargs))
    assert labelled == samples(160, mapper=draw_dict, **GROUPED)
    alike = [len({s["drawn"][0] < 17 for s in unlabeled[n : n + 2]}) == 1 for n in range(0, 80, 2)]
    assert sum(alike) > 30
    assert samples(12, start=90, **kwargs) == samples(102, **kwargs)[90:]


def test_unlabeled_images_are_grouped_by_their_own_number():
    """Three a batch beside four labelled ones."""
    mixed = {**MIXED, **GROUPED, "total_batch_size": 7, "unlabeled": SHAPES, "unlabeled_batch_size": 3}
    epochs = 6
    _, unlabeled = split(samples(7 * 23 * epochs, mapper=draw_dict, **mixed), batch=7)
    of_both = [len({s["drawn"][0] < 17 for s in unlabeled[n : n + 3]}) == 2 for n in range(0, len(unlabeled), 3)]
    assert len(of_both) == 23 * epochs
    assert 0 < sum(of_both) <= 2 * 3 * epochs


# ---- what torch's loader does ----------------------------------------------------------------------------------------


def test_persistent_workers_survive_a_pass():
    kwargs = {"dataset": DATASET, "mapper": worker_id, "total_batch_size": 1, "seed": 0}

    def pids(loader):
        return [next(iter(loader))[0] for _ in range(2)]

    kept = pids(build_train_loader(num_workers=1, persistent_workers=True, **kwargs))
    anew = pids(build_train_loader(num_workers=1, **kwargs))
    assert len(set(kept)) == 1 and len(set(anew)) == 2
    assert pids(build_train_loader(persistent_workers=True, **kwargs)) == [os.getpid()] * 2


def worker_id(entry):
    return os.getpid()


def test_pinned_memory_is_for_gpus(monkeypatch, recwarn):
    kwargs = {"dataset": DATASET, "mapper": draw, "total_batch_size": 1, "seed": 0, "pin_memory": True}
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert build_train_loader(**kwargs).pin_memory is available
    next(iter(build_train_loader(**kwargs)))
    assert not recwarn


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dataset": []}, "dataset is empty"),
        ({"seed": -1}, "seed=-1"),
        ({"start": -4}, "start=-4"),
        ({"total_batch_size": 0}, "total_batch_size is 0"),
        ({"total_batch_size": 3, "as_rank": (0, 2)}, "total_batch_size is 3.* 2 process"),
        ({"unlabeled_batch_size": 2}, "unlabeled_batch_size is 2, but there are no unlabeled images"),
        ({**MIXED, "unlabeled": []}, "no unlabeled images: check dataloader.train.unlabeled"),
        ({**MIXED, "unlabeled_batch_size": 0}, "unlabeled_batch_size is 0, expected a positive"),
        ({**MIXED, "unlabeled_batch_size": 6}, "unlabeled_batch_size is 6.* smaller than .*total_batch_size=6"),
        ({**MIXED, "unlabeled_batch_size": 1, "as_rank": (0, 2)}, "unlabeled_batch_size is 1.* 2 process"),
        ({**MIXED, "start": 4}, "start is 4, expected a multiple of total_batch_size=6"),
        ({**GROUPED, "start": 6}, "start is 6, expected a multiple of total_batch_size=4"),
        ({"aspect_ratio_grouping": True}, "Entry 0 of dataloader.train.dataset has no width and height"),
        (
            {**MIXED, **GROUPED},
            "Entry 0 of dataloader.train.unlabeled has no width and height.*aspect_ratio_grouping",
        ),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        samples(6, **kwargs)


def none_for_unlabeled(entry):
    return None if entry.get("unlabeled") else entry


def truncated(entry):
    raise OSError("image file is truncated\n(5 bytes not processed)")


def defective(entry):
    raise KeyError("bbox")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "mapper, message",
    [
        (truncated, r"mapper cannot read entry . of dataloader.train.dataset \(.\.png\): OSError: image file is "),
        (
            defective,
            r"mapper cannot read entry . of dataloader.train.dataset \(.\.png\): KeyError: 'bbox'. ",
        ),
        (none_for_unlabeled, r"mapper returned None for entry . of dataloader.train.unlabeled \(without a file_name\)"),
    ],
)
def test_a_sample_that_cannot_be_made_is_named_in_one_sentence(mapper, message, workers):
    dataset = [{"image_id": i, "file_name": f"{i}.png"} for i in range(5)]
    with pytest.raises(SampleError, match=message) as caught:
        samples(6, mapper=mapper, num_workers=workers, **{**MIXED, "dataset": dataset})
    assert str(caught.value).startswith("dataloader.train.mapper ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_entry_that_cannot_be_read_gives_way_to_the_next_one(workers, caplog):
    def unreadable(entry):
        if entry["image_id"] == 3:
            raise OSError("image file is truncated")
        return draw(entry)

    expected = [4 if s[0] == 3 else s[0] for s in samples(14)]
    assert [s[0] for s in samples(14, mapper=unreadable, on_error="skip", num_workers=workers)] == expected
    if not workers:
        assert "Skipped, 1 so far in this process (dataloader.train.on_error): " in caplog.text
        assert "cannot read entry 3 of dataloader.train.dataset" in caplog.text
    with pytest.raises(SampleError, match="or set dataloader.train.on_error=skip"):
        samples(14, mapper=unreadable, num_workers=workers)


def test_skipping_ends_where_nothing_can_be_read():
    def unreadable(entry):
        raise OSError("no such disk")

    with pytest.raises(SampleError, match="10 entries of dataloader.train.dataset in a row cannot be read"):
        samples(1, mapper=unreadable, on_error="skip")
    with pytest.raises(ValueError, match="on_error is 'ignore', expected 'raise' or 'skip'"):
        samples(1, on_error="ignore")


def test_more_than_8_bits_a_channel_are_refused_by_detectron2s_mapper_alone(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(path)
    entry = {"file_name": str(path), "width": 8, "height": 8, "image_id": 0}
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="BGR")
    with pytest.raises(SampleError, match=r"deep.png.*more than 8 bits a channel \(I;16\).*convert it to 8"):
        samples(1, dataset=[entry], mapper=mapper)
    assert samples(1, dataset=[entry], mapper=draw)  # another mapper may scale it
