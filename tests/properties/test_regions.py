"""Every region on any dense outputs, labels and objects: weights of each image by itself, whatever the order."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from d2kd.regions import REGION_REGISTRY, is_label_free, run_region
from tests.properties.scenes import DTYPES, OBJECTS, QUICK, SCALES, SEEDS, Scene, make_scene, rolled, shapes

#: name -> options of each kind.
OPTIONS = {
    "all_locations": [{}],
    "everywhere": [{}],
    "fine_grained": [{}, dict(threshold=0.2)],
    "gap": [{}],
    "general_instances": [dict(topk=3)],
    "inside_box": [{}, dict(exclude_positives=True, weighting="student_score")],
    "main": [{}],
    "main_and_valuable": [dict(centerness=True), dict(gain=0.5)],
    "positives": [{}],
    "task_integration": [{}, dict(combine="sum", min_teacher_score=2.0)],
    "teacher_quality": [{}, dict(centerness=True)],
    "valuable_localization": [{}, dict(metric="diou", weighting="mask", exclude_positives=True, topk=3, gamma=0.1)],
}
REGIONS = [pytest.param(name, options, id=f"{name}{options or ''}") for name in OPTIONS for options in OPTIONS[name]]


def run(name: str, options: dict, scene: Scene) -> dict[str, list[Tensor]]:
    made = run_region(name, scene.student, scene.teacher, scene.assignment, options)
    return {member: list(levels) for member, levels in made.items()}


def assert_same(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for member, levels in expected.items():
        for a, b in zip(found[member], levels, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_every_region_is_looked_at():
    assert set(OPTIONS) == {name for name, _ in REGION_REGISTRY}


@pytest.mark.parametrize("name, options", REGIONS)
def test_weights_are_detached_and_of_the_labels_shape(name, options):
    """Finite and not negative; of at most 1, but for TID's, which are scores. What they are made of stays as it is."""

    @QUICK
    @given(shapes(), SEEDS, st.sampled_from(DTYPES), SCALES, OBJECTS)
    def check(shape, seed, dtype, scale, objects):
        scene = make_scene(shape, seed=seed, dtype=dtype, scale=scale, objects=objects)
        before = [x.detach().clone() for x in [*scene.inputs(), *scene.teacher.logits, *scene.assignment.labels]]
        top = 4 if name == "task_integration" else 1
        for levels in run(name, options, scene).values():
            for weights, labels in zip(levels, scene.assignment.labels, strict=True):
                assert weights.shape == labels.shape and weights.dtype == torch.float32
                assert not weights.requires_grad and weights.isfinite().all()
                assert (weights >= 0).all() and (weights <= top + 1e-5).all()
                if name != "everywhere" and name != "task_integration":
                    assert not weights[labels < 0].any()
        after = [*scene.inputs(), *scene.teacher.logits, *scene.assignment.labels]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))

    check()


@pytest.mark.parametrize("name, options", REGIONS)
def test_an_images_weights_are_its_own(name, options):
    @QUICK
    @given(shapes(), SEEDS, SCALES, OBJECTS)
    def check(shape, seed, scale, objects):
        scene = make_scene(shape, seed=seed, scale=scale, objects=objects)
        whole = run(name, options, scene)
        alone = [run(name, options, scene.of_images([n])) for n in range(shape.images)]
        joined = {key: [torch.cat(x) for x in zip(*(one[key] for one in alone), strict=True)] for key in whole}
        assert_same(joined, whole)
        images = list(range(shape.images))[::-1]
        turned = {key: [x[images] for x in levels] for key, levels in whole.items()}
        assert_same(run(name, options, scene.of_images(images)), turned)

    check()


@pytest.mark.parametrize("name, options", REGIONS)
def test_the_order_of_cells_and_objects_does_not_matter(name, options):
    """Where no two locations are alike: of equals, the first is taken."""

    @QUICK
    @given(shapes(), SEEDS, OBJECTS)
    def check(shape, seed, objects):
        scene = make_scene(shape, seed=seed, objects=objects)
        whole = run(name, options, scene)
        moved = {key: [rolled(x, -2, -1) for x in levels] for key, levels in whole.items()}
        assert_same(run(name, options, scene.of_cells(rolled)), moved)
        labels = scene.assignment
        turned = [[x.flip(0) for x in of] for of in (labels.gt_boxes, labels.gt_classes)]
        other = replace(scene, assignment=replace(labels, gt_boxes=turned[0], gt_classes=turned[1]))
        assert_same(run(name, options, other), whole)

    check()


@pytest.mark.parametrize("name, options", REGIONS)
def test_only_a_region_that_reads_no_labels_is_said_to(name, options):
    """It is the same without objects; every other is nothing then, or the rest of TID's."""

    @QUICK
    @given(shapes(), SEEDS, SCALES)
    def check(shape, seed, scale):
        scene = make_scene(shape, seed=seed, scale=scale, objects=3)
        labels = scene.assignment
        background = [torch.where(x < 0, x, shape.classes) for x in labels.labels]
        none = dict(gt_boxes=[torch.zeros(0, 4)] * shape.images, gt_classes=[torch.zeros(0).long()] * shape.images)
        bare = replace(scene, assignment=replace(labels, labels=background, **none))
        without = run(name, options, bare)
        if is_label_free(name):
            assert_same(without, run(name, options, scene))
        elif name == "task_integration":
            assert not any(x.any() for key in ("weak", "key") for x in without[key])
            assert all((x == 1).all() for x in without["rest"])
        else:
            assert not any(x.any() for x in without[""])

    check()
