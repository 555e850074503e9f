"""Whole steps with several rare features at once: levels and classes that one side lacks, images without labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2kd.losses import BinaryClassificationKD, FeatureImitation, IoULocalizationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, LEVELS, build_detector, make_batch, run_step
from tests.properties.scenes import QUICK, SEEDS

IMAGES = 3
SOME_LEVELS = st.sampled_from([LEVELS, LEVELS[1:], LEVELS[:2]])
#: Teacher's class id -> student's; of a teacher with five classes, but for the first.
CLASS_MAPS = st.sampled_from([None, {0: 0, 1: 1, 2: 2}, {4: 0, 0: 2}])
#: Which images have labels, and how many objects each.
LABELS = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=IMAGES, max_size=IMAGES)


def step(family: str, ours, theirs, class_map, batch: list[dict], **options) -> dict[str, Tensor]:
    """The terms of one step of a new model, in which no image depends on the others but in what is crossed."""
    student = build_detector(family, levels=ours, backbone_norm="FrozenBN")
    teacher = build_detector(family, seed=1, levels=theirs, backbone_norm="FrozenBN", num_classes=5 if class_map else 3)
    losses = dict(
        cls=BinaryClassificationKD(**options),
        labelled=BinaryClassificationKD(region="positives", **options),
        loc=IoULocalizationKD(region="gap", **options),
    )
    if options["source"] == "student":
        losses["features"] = FeatureImitation(region="inside_box", normalizer=options["normalizer"])
    node = dict(model=teacher, class_map=class_map, engine="eager")
    made = run_step(DistilledDetector(student=student, teacher=node, losses=losses), batch)
    assert all(value.isfinite() for value in made.values())
    return {name: value.detach() for name, value in made.items() if name.startswith("loss_kd_")}


def batch_of(labels, seed: int) -> list[dict]:
    batch = make_batch([(40, 56)] * IMAGES, objects=[count for _, count in labels], seed=seed)
    for item, (labelled, _) in zip(batch, labels, strict=True):
        item["unlabeled"] = not labelled
    return batch


@pytest.mark.parametrize("source", ["student", "crossed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_images_does_not_matter(family, source):
    @settings(QUICK, max_examples=6)
    @given(SOME_LEVELS, SOME_LEVELS, CLASS_MAPS, LABELS, SEEDS, st.sampled_from(["positives", "images", "locations"]))
    def check(ours, theirs, class_map, labels, seed, normalizer):
        batch = batch_of(labels, seed)
        terms, turned = (
            step(family, ours, theirs, class_map, images, source=source, normalizer=normalizer)
            for images in (batch, batch[::-1])
        )
        assert terms.keys() == turned.keys()
        for name, value in terms.items():
            torch.testing.assert_close(turned[name], value, rtol=1e-3, atol=1e-5)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_term_that_is_divided_by_nothing_is_the_sum_over_images(family):
    @settings(QUICK, max_examples=6)
    @given(SOME_LEVELS, SOME_LEVELS, CLASS_MAPS, LABELS, SEEDS)
    def check(ours, theirs, class_map, labels, seed):
        batch = batch_of(labels, seed)
        options = dict(source="student", normalizer="none")
        terms = step(family, ours, theirs, class_map, batch, **options)
        alone = [step(family, ours, theirs, class_map, [image], **options) for image in batch]
        for name, value in terms.items():
            torch.testing.assert_close(sum(one[name] for one in alone), value, rtol=1e-3, atol=1e-4)

    check()
