"""TID's areas of whole batches against loops over locations and objects, and what options do."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch

from d2kd.regions.task_integration import task_integration
from d2kd.regions.task_scores import ImportanceScore, cell_scores, iou_thresholds_of
from tests.regions.task_scenes import (
    AREAS,
    DEFAULTS,
    assert_differ,
    assert_equal_areas,
    brute_force,
    scene,
    sizes_of,
)

OPTIONS = [
    {},
    dict(iou_thresholds=(0.55, 0.8)),
    dict(iou_thresholds=[0.5, 0.5]),
    dict(iou_thresholds="atss"),
    dict(cls_thresholds=(0.6, 0.9)),
    dict(iou_values=(3.0, 1.0, 0.0)),
    dict(cls_values=(3.0, 1.0, 0.0)),
    dict(combine="sum"),
    dict(combine="cls", key_threshold=1.5),
    dict(combine="reg", key_threshold=1.5),
    dict(cls_mode="hit"),
    dict(centerness=True),
    dict(score="continuous", key_threshold=0.5),
    dict(score="continuous", key_threshold=0.5, alpha=0.2),
    dict(score="continuous", key_threshold=0.5, combine="sum", alpha=0.8),
    dict(score="continuous", key_threshold=0.5, combine="cls"),
    dict(score="continuous", key_threshold=0.5, combine="reg"),
    dict(score="continuous", key_threshold=0.5, cls_mode="hit"),
    dict(score="continuous", key_threshold=0.5, centerness=True),
    dict(key_threshold=4),
    dict(key_threshold=0.8),
    dict(min_gap=0.7),
    dict(min_gap=1.0),
    dict(min_teacher_score=2.25),
    dict(key_from="gt"),
    dict(key_from="either"),
    dict(weak_topk=1),
    dict(weak_topk=3, key_from="either"),
    dict(weak_topk=2, score="continuous", key_threshold=0.5),
    dict(drop_student_better=True),
    dict(cell_weight="uniform"),
]


@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_loops_over_cells_and_objects(options, num_anchors):
    """... and every option changes something."""
    batch = scene(num_anchors)
    found = task_integration(*batch, **options)
    assert_equal_areas(found, brute_force(*batch, **options))
    assert tuple(found) == AREAS and all(sizes_of(found).values())
    if options:
        base = dict(score="continuous", key_threshold=0.5) if options.get("score") == "continuous" else {}
        if options != base:
            assert_differ(found, task_integration(*batch, **base))
    for area in AREAS:
        for weights, valid in zip(found[area], batch[2].valid, strict=True):
            assert weights.shape == valid.shape and weights.dtype == torch.float32 and not weights.requires_grad
            assert weights.stride(1) == 0 or weights.shape[1] == 1  # one weight a cell, not a copy an anchor


def test_several_objects_decide_in_the_scene():
    """What makes the comparison above one of something: the cells' objects, scores and areas are various."""
    source, teacher, assignment = scene(3)
    rule = ImportanceScore()
    scores, objects, overlaps = cell_scores(teacher, assignment, rule, iou_thresholds_of(rule, source, assignment))
    assert set(objects[0].tolist()) >= {0, 1, 2, 3} and set(objects[1].tolist()) == {-1}
    assert len({round(x, 4) for x in scores[0].tolist()}) >= 5
    assert overlaps[0].max() > 0.8


@pytest.mark.parametrize("num_anchors", [1, 3])
def test_a_student_equal_to_the_teacher_has_no_weak_area(num_anchors):
    _, teacher, assignment = scene(num_anchors)
    for options in ({}, dict(score="continuous", key_threshold=0.5)):
        found = task_integration(teacher, teacher, assignment, **options)
        assert sizes_of(found)["weak"] == 0 and sizes_of(found)["key"] > 0


@pytest.mark.parametrize("options", [x for x in OPTIONS if "drop_student_better" not in x], ids=str)
def test_areas_are_disjoint_and_cover_the_map(options):
    found = task_integration(*scene(2), **options)
    for levels in zip(*(found[area] for area in AREAS), strict=True):
        assert torch.equal(sum((x > 0).long() for x in levels), torch.ones_like(levels[0], dtype=torch.int64))


@pytest.mark.parametrize(
    "options",
    [{}, dict(key_threshold=0), dict(combine="sum", key_threshold=0.8), dict(key_from="either"), dict(weak_topk=2),
     dict(iou_thresholds="atss"), dict(score="continuous", key_threshold=0)],
)  # fmt: skip
def test_images_without_objects_are_all_rest(options):
    source, teacher, assignment = scene(2, objects=(0, 3, 0))
    found = task_integration(source, teacher, assignment, **options)
    for n in (0, 2):
        for weak, key, rest in zip(*(found[area] for area in AREAS), strict=True):
            assert not weak[n].any() and not key[n].any() and (rest[n] == 1).all()
    assert all((weights > 0).any() for weights in (found["weak"][0][1], found["rest"][0][1]))


def test_locations_outside_the_valid_ones_do_not_count():
    source, teacher, assignment = scene(2, objects=(4,))
    for level in (*assignment.valid, *assignment.positives):
        level.fill_(True)
    before = task_integration(source, teacher, assignment, key_from="either")
    assert (before["weak"][0][0, :, 0] > 0).any() or (before["key"][0][0, :, 0] > 0).any()
    assignment.valid[0][0, :, 0] = False  # a row of cells
    assignment.valid[0][0, 1, 1] = False  # one anchor of another row's
    after = task_integration(source, teacher, assignment, key_from="either")
    assert (after["rest"][0][0, :, 0] == 1).all()
    assert not after["weak"][0][0, :, 0].any() and not after["key"][0][0, :, 0].any()
    assert_equal_areas(after, brute_force(source, teacher, assignment, key_from="either"))
    alone = [SimpleNamespace(**vars(x)) for x in (source, teacher)]
    for output in alone:
        output.boxes, output.logits = [x[:, :1] for x in output.boxes], [x[:, :1] for x in output.logits]
    one = SimpleNamespace(**vars(assignment))
    one.valid, one.positives = [x[:, :1] for x in assignment.valid], [x[:, :1] for x in assignment.positives]
    of_one = task_integration(*alone, one, key_from="either")
    for area in AREAS:  # the row's cells are what their only anchor makes of them
        assert torch.equal(after[area][0][0, 0, 1], of_one[area][0][0, 0, 1])


@pytest.mark.parametrize("copies", [2, 9])
def test_layouts_with_the_same_boxes_and_scores_give_the_same_areas(copies):
    """One anchor a cell, the same several times, and beside it anchors that say nothing of any object."""
    source, teacher, assignment = scene(1)
    expected = task_integration(source, teacher, assignment)

    def spread(output, rest):
        boxes = [
            torch.cat([x, *[x if rest is None else torch.full_like(x, rest)] * (copies - 1)], 1) for x in output.boxes
        ]
        logits = [torch.cat([x] * copies, 1) for x in output.logits]
        return SimpleNamespace(boxes=boxes, logits=logits, class_dim=2, centerness=None, anchors=None)

    wide = SimpleNamespace(**vars(assignment))
    for field in ("valid", "positives"):
        setattr(wide, field, [x.expand(-1, copies, -1, -1) for x in getattr(assignment, field)])
    for rest in (None, 1e4):
        found = task_integration(spread(source, rest), spread(teacher, rest), wide)
        for area in AREAS:
            for weights, want in zip(found[area], expected[area], strict=True):
                assert torch.equal(weights, want.expand(-1, copies, -1, -1))


def test_swapping_student_and_teacher_empties_weak_cells():
    source, teacher, assignment = scene(2)
    found, swapped = task_integration(source, teacher, assignment), task_integration(teacher, source, assignment)
    for weak, other in zip(found["weak"], swapped["weak"], strict=True):
        assert not ((weak > 0) & (other > 0)).any()
    assert sizes_of(found)["weak"] > sizes_of(swapped)["weak"] > 0


def test_detached():
    batch = scene(2, requires_grad=True)
    for options in ({}, dict(score="continuous", key_threshold=0.5, iou_thresholds="atss", weak_topk=2)):
        found = task_integration(*batch, **options)
        assert not any(x.requires_grad for area in AREAS for x in found[area])


def test_half_precision_logits_and_inputs_left_alone():
    source, teacher, assignment = scene(2)
    for output in (source, teacher):
        output.logits = [x.half().float() for x in output.logits]
    expected = task_integration(source, teacher, assignment)
    for output in (source, teacher):
        output.logits = [x.half() for x in output.logits]
    copies = [[x.clone() for x in (*output.logits, *output.boxes)] for output in (source, teacher)]
    assert_equal_areas(task_integration(source, teacher, assignment), expected)
    for output, kept in zip((source, teacher), copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((*output.logits, *output.boxes), kept, strict=True))


@pytest.mark.parametrize(
    "options", [{}, dict(weak_topk=2), dict(iou_thresholds="atss"), dict(combine="cls", key_threshold=1.5)]
)
def test_the_order_of_the_objects_does_not_matter(options):
    source, teacher, assignment = scene(2, objects=(5, 3))
    found = task_integration(source, teacher, assignment, **options)
    assignment.gt_boxes = [x.flip(0) for x in assignment.gt_boxes]
    assignment.gt_classes = [x.flip(0) for x in assignment.gt_classes]
    assert_equal_areas(task_integration(source, teacher, assignment, **options), found)


@pytest.mark.parametrize(
    "option, values, expected",
    [
        ("score", ["soft", None], "one of discrete, continuous"),
        ("alpha", [-0.1, 1.5, "0.5", True, float("nan")], r"a number in \[0, 1\]"),
        ("combine", ["max"], "one of product, sum, cls, reg"),
        ("cls_mode", ["prob"], "one of score, hit"),
        ("iou_values", [(1, 2, 3), (2, 1), 2.0, (2, 1, -1), (0, 0, 0), (math.inf, 1, 0), ("2", 1, 0)], "three falling"),
        ("cls_values", [(0.4, 1.5, 2), None, (math.nan, 1, 0)], "three falling"),
        (
            "iou_thresholds",
            ["fixed", (0.5, 0.4), (0.4,), (0.4, 1.1), (0, 0), (-1, 0.5), None],
            "matcher, atss, or IoUs",
        ),
        ("cls_thresholds", [(0.5, 0.05), (0.5,), 0.5, (0.5, 2)], r"probabilities \[lower, upper\]"),
        ("centerness", ["yes", 1, None], "true or false"),
        ("key_threshold", [-1, 4.5, "2.25"], r"a number in \[0, 4\]"),
        ("min_gap", [-0.1, 5, None], r"a number in \[0, 4\]"),
        ("min_teacher_score", [-0.1, 5, True], r"a number in \[0, 4\]"),
        ("key_from", ["student"], "one of teacher, gt, either"),
        ("weak_topk", [0, 2.0, True], "a whole number of at least 1"),
        ("drop_student_better", [0, "false", None], "true or false"),
        ("cell_weight", ["gap"], "one of value, uniform"),
    ],
)
def test_options_that_mean_nothing_are_named(option, values, expected):
    batch = scene(1)
    assert option in DEFAULTS
    for value in values:
        message = (
            rf"Option {option} of region 'task_integration' is .*, expected {expected}.*: change region\.{option} "
        )
        with pytest.raises(ValueError, match=message):
            task_integration(*batch, **{option: value})


@pytest.mark.parametrize(
    "options, medium",
    [
        ({}, 2.25),
        (dict(score="continuous"), 0.5),
        (dict(combine="cls"), 1.5),
        (dict(combine="reg"), 1.5),
        (dict(combine="sum"), 3.0),
        (dict(iou_values=(1.0, 0.5, 0.1)), 0.75),
    ],
)
def test_by_default_key_cells_are_medium_in_both_tasks(options, medium):
    batch = scene(1)
    assert_equal_areas(task_integration(*batch, **options), task_integration(*batch, **options, key_threshold=medium))
    with pytest.raises(ValueError, match=r"Option key_threshold .* is 4.5, expected a number in \[0, [124]\]"):
        task_integration(*batch, **options, key_threshold=4.5)


def test_every_option_is_tested_with_its_default():
    parameters = inspect.signature(task_integration).parameters.values()
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == DEFAULTS
    assert {name for options in OPTIONS for name in options} == set(DEFAULTS)
