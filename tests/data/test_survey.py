"""What is found in a dataset."""

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import ExifTags, Image

from d2kd.data.survey import survey


@pytest.fixture
def item(tmp_path):
    def item(name, size=(40, 20), boxes=(), mode="RGB", orientation=None, **changes):
        exif = Image.Exif()
        if orientation:
            exif[ExifTags.Base.Orientation] = orientation
        Image.new(mode, size).save(tmp_path / name, exif=exif)
        annotations = [
            {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0} for box in boxes
        ]
        found = {"file_name": str(tmp_path / name), "width": size[0], "height": size[1], "annotations": annotations}
        return {**found, **changes}

    return item


def test_boxes(item):
    found = survey(
        [
            item("a.jpg", boxes=[(0, 0, 10, 10), (30, 10, 50, 20), (5, 5, 5, 9), (50, 0, 60, 9)]),
            item("b.jpg"),
            item("c.jpg", (20, 40), boxes=[(0, 0, 20, 5)]),
        ]
    )
    assert found.sizes.tolist() == [[40, 20], [40, 20], [20, 40]]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [30, 10, 40, 20], [0, 0, 20, 5]]
    assert (found.labels.tolist(), found.of_image.tolist()) == ([1, 1, 1], [0, 0, 2])
    assert (found.empty, found.over_edge, found.crowds) == (1, 1, 0)
    assert {kind: count for kind, (count, _) in found.broken.items()} == {"without area": 1, "outside the image": 1}
    assert all(first.endswith("a.jpg") for _, first in found.broken.values())
    assert found.box_sizes.tolist() == [10, 10, 10]
    assert found.shares.tolist() == [0.5, 0.5, 0.5]


def test_crowds_are_no_boxes(item):
    crowded = item("a.jpg", boxes=[(0, 0, 10, 10), (1, 1, 5, 5)])
    crowded["annotations"][0]["iscrowd"] = 1
    found = survey([crowded])
    assert (len(found.boxes), found.crowds, found.empty) == (1, 1, 0)


def test_difficult_objects_are_boxes(item):
    marked = item("a.jpg", boxes=[(0, 0, 10, 10), (1, 1, 5, 5)])
    marked["annotations"][0]["difficult"] = True
    assert (len(survey([marked]).boxes), survey([marked]).difficult) == (2, 1)


def test_equal_files_have_equal_digests(item):
    first, second, third = survey([item("a.png"), item("b.png"), item("c.png", mode="L")]).digests
    assert first == second != third


def test_grey_and_turned_images_are_read(item):
    """Their sizes are those of the mapper's images."""
    turned = item("b.jpg", orientation=6, width=20, height=40)
    dataset = [item("a.png", mode="L"), turned, item("c.jpg")]
    found = survey(dataset)
    assert (found.grey, found.turned) == (1, 1)
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    assert [tuple(mapper(x)["image"].shape) for x in dataset] == [(3, 20, 40), (3, 40, 20), (3, 20, 40)]


def test_images_that_cannot_be_trained_on(item, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg")
    cut = item("cut.jpg", width=90, height=90)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    text = item("text.jpg")
    (tmp_path / "text.jpg").write_text("<html>")
    dataset = [
        item("good.jpg"),
        cut,
        text,
        item("other.jpg", width=41),
        item("turned.jpg", orientation=6),
        item("turned.tif", orientation=6, width=20, height=40),
        {**item("folder.jpg"), "file_name": str(tmp_path)},
        item("deep.png", mode="I;16"),
        {**item("gone.jpg"), "file_name": "gone.jpg"},
    ]
    with pytest.raises(ValueError) as refused:
        survey(dataset)
    assert str(refused.value) == (
        f"8 of 9 images cannot be trained on: 1 cut or damaged (first {tmp_path}/cut.jpg), 1 that are no images (first "
        f"{tmp_path}/text.jpg), 2 of another size than their labels state (first {tmp_path}/other.jpg), 1 that a "
        f"TIFF's tag rotates, which Pillow and Detectron2 would both do (first {tmp_path}/turned.tif), 1 that cannot "
        f"be opened (first {tmp_path}), 1 with more than 8 bits a channel (first {tmp_path}/deep.png), 1 missing "
        "(first gone.jpg): mend them, or leave them and their labels out."
    )
