"""What a term is divided by, on one rank; test_distributed.py has several."""

import pytest
import torch

from d2kd.losses import NORMALIZERS, BinaryClassificationKD
from d2kd.modeling.distillation.normalizers import compute_normalizers
from tests.helpers import flat_assignment

REGION = [torch.tensor([0.5, 0.25, 0, 0]).view(1, 1, 2, 2).repeat(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)]


def assignment(positives=(2, 0, 0)):
    """Three images; a level of 2x2 cells with so many positives, and one cell without."""
    labels = torch.full((3, 5), 4)
    for row, count in zip(labels, positives, strict=True):
        row[:count] = 1
    return flat_assignment(labels, 4, [(2, 2), (1, 1)])


def compute(losses, regions, assignments, *, own=0.0, positives=(0.0, 0.0)):
    running = torch.tensor(positives, dtype=torch.float64)
    num_images = len(next(iter(assignments.values())).gt_boxes)
    return compute_normalizers(
        losses, regions, assignments, num_images=num_images, loss_normalizer=own, positives_per_image=running
    )


def normalizer(kind, *, source="student", region=REGION, positives=(0.0, 0.0), name="teacher_quality", **rest):
    losses = {"term": BinaryClassificationKD(normalizer=kind, source=source, region=name)}
    assignments = rest or {"student": assignment()}
    return compute(losses, {"term": [region]}, assignments, positives=positives)[0]["term"]


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("positives", 2.0),
        ("local_positives", 4.0),  # at least one an image
        ("images", 1.5),  # 1 at the papers' two images
        ("locations", 2.25),
        ("none", 1.0),
    ],
)
def test_scalars(kind, expected):
    assert normalizer(kind).item() == expected


def test_a_mean_over_levels_leaves_empty_ones_out():
    """Sums that are each level's total weight: each level's mean is 1, and so is theirs."""
    full = [torch.tensor([0.5, 0.25, 0, 0]).view(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)]
    for region in (full, full[:2], full[:1], full[2:]):
        totals = torch.stack([x.sum() for x in region])
        mean = (totals / normalizer("level_mean", region=region)).sum()
        assert mean.item() == pytest.approx(1 if totals.any() else 0)


def test_every_level_has_its_own():
    value = normalizer("level_locations")
    assert value.shape == (2,) and value[0] == 2.25
    # An empty level's sum is zero: it must stay that, and finite, whatever it is divided by.
    assert torch.equal((torch.tensor([1.0, 0.0]) / value)[1:], torch.zeros(1)) and (10 / value).isfinite().all()


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_without_any_positive_or_region_nothing_is_infinite(kind):
    value = normalizer(kind, student=assignment((0, 0, 0)), region=[torch.zeros_like(x) for x in REGION])
    assert (value > 0).all() and (1 / value).isfinite().all()


def test_positives_are_those_of_the_source():
    pair = dict(student=assignment(), crossed=assignment((3, 1, 0)))
    assert normalizer("positives", **pair).item() == 2
    assert normalizer("positives", source="crossed", **pair).item() == 4


def test_the_students_own_normaliser_is_kept_exactly():
    value = compute({}, {}, {"student": assignment()}, own=100.1)[1]["loss_normalizer"]
    assert value.dtype == torch.float64 and value.item() == 100.1


def partly_labelled(positives=(2, 0, 0), num_labelled=2):
    some = assignment(positives)
    some.num_labelled = num_labelled
    return some


def test_images_without_labels_count_where_the_region_needs_none():
    student = partly_labelled()
    assert normalizer("images", student=student).item() == 1.5
    assert normalizer("images", student=student, name="positives").item() == 1
    assert normalizer("images", student=partly_labelled(num_labelled=0), name="positives").item() == 0.5  # not 0


@pytest.mark.parametrize("before, expected", [(0.0, 1.0), (3.0, 0.9 * 3 + 0.1)])
def test_images_without_labels_count_the_running_mean_of_positives(before, expected):
    """Two positives in two labelled images, and one image without."""
    student = partly_labelled()
    assert normalizer("positives", student=student, positives=(before, 5.0)).item() == pytest.approx(2 + expected)
    after = compute({}, {}, {"student": student}, positives=(before, 5.0))[1]["positives_per_image"]
    assert after.tolist() == pytest.approx([expected, 5.0])  # of the source that was not there: as it was


def test_each_source_has_a_running_mean_of_its_own():
    """Two positives a labelled image in the student's anchors, and one in the teacher's."""
    pair = dict(student=partly_labelled((2, 2, 0)), crossed=partly_labelled((1, 1, 0)))
    before = (6.0, 3.0)
    assert normalizer("positives", positives=before, **pair).item() == pytest.approx(4 + 0.9 * 6 + 0.1 * 2)
    crossed = normalizer("positives", source="crossed", positives=before, **pair)
    assert crossed.item() == pytest.approx(2 + 0.9 * 3 + 0.1 * 1)
    after = compute({}, {}, pair, positives=before)[1]["positives_per_image"]
    assert after.tolist() == pytest.approx([5.6, 2.8])


def test_without_any_labels_the_mean_stays():
    student = partly_labelled((0, 0, 0), num_labelled=0)
    assert normalizer("positives", student=student, positives=(4.0, 0.0)).item() == 12
    assert compute({}, {}, {"student": student}, positives=(4.0, 0.0))[1]["positives_per_image"].tolist() == [4, 0]
    assert normalizer("positives", student=student).item() == 3  # none known yet: one an image
