import logging

import pytest
from detectron2.structures import BoxMode

from d2kd.data.annotations import drop_broken_boxes

NAN = float("nan")
GOOD = {"bbox": [1.0, 2.0, 5.0, 6.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}


def image(*annotations, name="a.jpg"):
    return {"file_name": name, "width": 10, "height": 8, "annotations": list(annotations)}


def box(*numbers, mode=BoxMode.XYWH_ABS, **changes):
    return {**GOOD, "bbox": list(numbers), "bbox_mode": mode, **changes}


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (box(NAN, 0, 1, 1), "not finite"),
        (box(0, 0, float("inf"), 1), "not finite"),
        (box(1, 1, 0, 3), "without area"),
        (box(1, 1, -2, 3), "without area"),
        (box(5, 5, 2, 7, mode=BoxMode.XYXY_ABS), "without area"),
        (box(10, 1, 2, 2), "outside the image"),
        (box(1, 8, 2, 2), "outside the image"),
        (box(-3, 1, 2, 2), "outside the image"),
    ],
)
def test_boxes_that_teach_nothing_are_left_out_and_counted_by_kind(broken, kind, caplog):
    dataset = [image(GOOD), image(GOOD, broken, name="b.jpg"), image(broken, name="c.jpg")]
    with caplog.at_level(logging.WARNING):
        kept = drop_broken_boxes(dataset, "dataloader.train.dataset")
    assert kept == [image(GOOD), image(GOOD, name="b.jpg")]
    assert len(dataset[1]["annotations"]) == 2  # which is the caller's
    assert caplog.messages == [
        f"dataloader.train.dataset: left out 2 boxes: 2 {kind} (first in b.jpg); and 1 images that have no others."
    ]


def test_a_sound_dataset_is_returned_as_it_is(caplog):
    dataset = [
        image(GOOD, box(-1, -1, 3, 3), box(8, 6, 5, 5)),  # partly outside
        image(),
        {"file_name": "unlabelled.jpg"},
        image(box(1, 1, 2, 2, 90, mode=BoxMode.XYWHA_ABS), name="rotated.jpg"),
    ]
    assert drop_broken_boxes(dataset, "dataset") is dataset and not caplog.messages


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"id": 7, "category_id": 0}, r"Annotation 7 of a.jpg has no 'bbox': add it, or remove the annotation"),
        ({"bbox": [0, 0, 1, 1]}, "Annotation without an id of a.jpg has no 'category_id'"),
        (box(1, 2, 3, id=8), r"Annotation 8 of a.jpg has the box \[1, 2, 3\], expected four numbers"),
        ({**GOOD, "bbox": None, "id": 9}, "Annotation 9 of a.jpg has the box None"),
        (box(1, 1, 0, 0), "dataset has no box that can be learnt from: 1 without area"),
    ],
)
def test_what_cannot_be_left_out_is_refused(annotation, message):
    with pytest.raises(ValueError, match=message):
        drop_broken_boxes([image(annotation)], "dataset")


def test_a_dataset_of_images_without_objects_is_refused():
    with pytest.raises(ValueError, match="dataset has 2 images and no object: .* are dataloader.train.unlabeled"):
        drop_broken_boxes([image(), image()], "dataset")
    others = [{"file_name": "labels of another kind.jpg"}]
    assert drop_broken_boxes(others, "dataset") is others


@pytest.mark.parametrize("mode", [BoxMode.XYWH_ABS, BoxMode.XYXY_ABS])
def test_boxes_that_are_shares_of_the_image_are_refused(mode):
    shares = box(0.1, 0.2, 0.5, 0.9, mode=mode)
    with pytest.raises(ValueError, match="no box larger than a pixel: give pixels"):
        drop_broken_boxes([image(shares), image(shares)], "dataset")
    mixed = [image(shares), image(GOOD)]
    assert drop_broken_boxes(mixed, "dataset") is mixed
