"""TID's regions of whole batches against loops over locations and objects, and what options do."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from d2kd.regions.task_integration import task_integration
from d2kd.regions.task_scores import cell_scores
from tests.regions.task_scenes import (
    DEFAULTS,
    REGIONS,
    assert_differ,
    assert_equal_regions,
    brute_force,
    scene,
    sizes_of,
)

OPTIONS = [
    {},
    dict(combine="sum"),
    dict(combine="cls"),
    dict(combine="reg"),
    dict(min_teacher_score=2.25),
    dict(combine="sum", min_teacher_score=3.5),
]


@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize("thresholds", [None, (0.55, 0.8)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_loops_over_cells_and_objects(options, thresholds, num_anchors):
    """... and every option changes something."""
    batch = scene(num_anchors)
    batch[2].iou_thresholds = thresholds
    found = task_integration(*batch, **options)
    assert_equal_regions(found, brute_force(*batch, **options))
    assert tuple(found) == REGIONS and all(sizes_of(found).values())
    if options:
        assert_differ(found, task_integration(*batch))
    for region in REGIONS:
        for weights, valid in zip(found[region], batch[2].valid, strict=True):
            assert weights.shape == valid.shape and weights.dtype == torch.float32 and not weights.requires_grad
            assert weights.stride(1) == 0 or weights.shape[1] == 1  # one weight a cell, not a copy an anchor


def test_the_scene_has_cells_of_several_scores():
    """What makes the comparison above one of something."""
    source, teacher, assignment = scene(3)
    scores = torch.cat([cell_scores(output, assignment)[[0, 2]].flatten() for output in (source, teacher)])
    assert len({round(x, 4) for x in scores.tolist()}) >= 5


@pytest.mark.parametrize("num_anchors", [1, 3])
def test_a_student_equal_to_the_teacher_has_no_weak_cell(num_anchors):
    _, teacher, assignment = scene(num_anchors)
    found = task_integration(teacher, teacher, assignment)
    assert sizes_of(found)["weak"] == 0 and sizes_of(found)["key"] > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_regions_are_disjoint_and_cover_the_map(options):
    found = task_integration(*scene(2), **options)
    for levels in zip(*(found[region] for region in REGIONS), strict=True):
        assert torch.equal(sum((x > 0).long() for x in levels), torch.ones_like(levels[0], dtype=torch.int64))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_images_without_objects_are_all_rest(options):
    source, teacher, assignment = scene(2, objects=(0, 3, 0))
    found = task_integration(source, teacher, assignment, **options)
    for n in (0, 2):
        for weak, key, rest in zip(*(found[region] for region in REGIONS), strict=True):
            assert not weak[n].any() and not key[n].any() and (rest[n] == 1).all()
    assert all((weights > 0).any() for weights in (found["weak"][0][1], found["rest"][0][1]))


def test_locations_outside_the_valid_ones_do_not_count():
    source, teacher, assignment = scene(2, objects=(4,))
    for level in assignment.valid:
        level.fill_(True)
    before = task_integration(source, teacher, assignment)
    assert (before["weak"][0][0, :, 0] > 0).any() or (before["key"][0][0, :, 0] > 0).any()
    assignment.valid[0][0, :, 0] = False  # a row of cells
    assignment.valid[0][0, 1, 1] = False  # one anchor of another row's
    after = task_integration(source, teacher, assignment)
    assert (after["rest"][0][0, :, 0] == 1).all()
    assert not after["weak"][0][0, :, 0].any() and not after["key"][0][0, :, 0].any()
    assert_equal_regions(after, brute_force(source, teacher, assignment))
    alone = [SimpleNamespace(**vars(x)) for x in (source, teacher)]
    for output in alone:
        output.boxes, output.logits = [x[:, :1] for x in output.boxes], [x[:, :1] for x in output.logits]
    one = SimpleNamespace(**vars(assignment))
    one.valid = [x[:, :1] for x in assignment.valid]
    of_one = task_integration(*alone, one)
    for region in REGIONS:  # the row's cells are what their only anchor makes of them
        assert torch.equal(after[region][0][0, 0, 1], of_one[region][0][0, 0, 1])


@pytest.mark.parametrize("copies", [2, 9])
def test_layouts_with_the_same_boxes_and_scores_give_the_same_regions(copies):
    """One anchor a cell, the same several times, and beside it anchors that say nothing of any object."""
    source, teacher, assignment = scene(1)
    expected = task_integration(source, teacher, assignment)

    def spread(output, rest):
        boxes = [
            torch.cat([x, *[x if rest is None else torch.full_like(x, rest)] * (copies - 1)], 1) for x in output.boxes
        ]
        logits = [torch.cat([x] * copies, 1) for x in output.logits]
        return SimpleNamespace(boxes=boxes, logits=logits, class_dim=2)

    wide = SimpleNamespace(**vars(assignment))
    wide.valid = [x.expand(-1, copies, -1, -1) for x in assignment.valid]
    for rest in (None, 1e4):
        found = task_integration(spread(source, rest), spread(teacher, rest), wide)
        for region in REGIONS:
            for weights, want in zip(found[region], expected[region], strict=True):
                assert torch.equal(weights, want.expand(-1, copies, -1, -1))


def test_swapping_student_and_teacher_empties_weak_cells():
    source, teacher, assignment = scene(2)
    found, swapped = task_integration(source, teacher, assignment), task_integration(teacher, source, assignment)
    for weak, other in zip(found["weak"], swapped["weak"], strict=True):
        assert not ((weak > 0) & (other > 0)).any()
    assert sizes_of(found)["weak"] > sizes_of(swapped)["weak"] > 0


def test_detached():
    found = task_integration(*scene(2, requires_grad=True))
    assert not any(x.requires_grad for region in REGIONS for x in found[region])


def test_half_precision_logits_and_inputs_left_alone():
    source, teacher, assignment = scene(2)
    for output in (source, teacher):
        output.logits = [x.half().float() for x in output.logits]
    expected = task_integration(source, teacher, assignment)
    for output in (source, teacher):
        output.logits = [x.half() for x in output.logits]
    copies = [[x.clone() for x in (*output.logits, *output.boxes)] for output in (source, teacher)]
    assert_equal_regions(task_integration(source, teacher, assignment), expected)
    for output, kept in zip((source, teacher), copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((*output.logits, *output.boxes), kept, strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_order_of_the_objects_does_not_matter(options):
    source, teacher, assignment = scene(2, objects=(5, 3))
    found = task_integration(source, teacher, assignment, **options)
    assignment.gt_boxes = [x.flip(0) for x in assignment.gt_boxes]
    assignment.gt_classes = [x.flip(0) for x in assignment.gt_classes]
    assert_equal_regions(task_integration(source, teacher, assignment, **options), found)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(combine="max"), "combine is 'max', expected one of product, sum, cls, reg"),
        (dict(combine=None), "combine is None, expected one of"),
        (dict(min_teacher_score=-0.1), r"min_teacher_score is -0.1, expected a number in \[0, 4\]"),
        (dict(min_teacher_score=4.1), r"min_teacher_score is 4.1, expected a number in \[0, 4\]"),
        (dict(min_teacher_score=True), r"min_teacher_score is True, expected a number in \[0, 4\]"),
        (dict(min_teacher_score="2.25"), r"min_teacher_score is '2.25', expected a number in \[0, 4\]"),
        (dict(min_teacher_score=2.25, combine="cls"), r"min_teacher_score is 2.25, expected a number in \[0, 2\]"),
    ],
)
def test_options_that_mean_nothing_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        task_integration(*scene(1), **options)


def test_every_option_is_tested_with_its_default():
    parameters = inspect.signature(task_integration).parameters.values()
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == DEFAULTS
    assert {name for options in OPTIONS for name in options} == set(DEFAULTS)
