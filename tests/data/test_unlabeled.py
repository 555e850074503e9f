"""Images without labels, through Detectron2's own mapper, loader and COCO reader."""

import itertools
import json

import numpy as np
import pytest
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.datasets import load_coco_json
from PIL import Image

from d2kd.data import without_labels

BOX = {"bbox": [2.0, 3.0, 20.0, 10.0], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}


@pytest.fixture
def dataset(tmp_path):
    """Four images, wide and tall, each with every kind of label that Detectron2 knows."""
    items = []
    for i, (width, height) in enumerate([(64, 32), (32, 64), (64, 32), (32, 64)]):
        file = tmp_path / f"{i}.png"
        Image.fromarray(np.full((height, width, 3), i, dtype=np.uint8)).save(file)
        items.append({"file_name": str(file), "image_id": i, "width": width, "height": height, "annotations": [BOX]})
        items[-1] |= {"sem_seg_file_name": str(file), "pan_seg_file_name": str(file), "segments_info": [{"id": 1}]}
        items[-1] |= {"camera": "left"}
    return items


def test_labels_go_and_all_else_stays(dataset):
    before = json.dumps(dataset)
    found = without_labels(dataset)
    kept = ("file_name", "image_id", "width", "height", "camera")
    assert found == [{**{key: item[key] for key in kept}, "unlabeled": True} for item in dataset]
    assert without_labels(found) == found
    assert json.dumps(dataset) == before


def test_the_mapper_makes_no_instances_and_passes_the_mark_on(dataset):
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    for item, entry in zip(dataset, without_labels(dataset), strict=True):
        mapped = mapper(entry)
        assert set(mapped) == {"file_name", "image_id", "width", "height", "camera", "image", "unlabeled"}
        assert mapped["unlabeled"] is True
        assert mapped["image"].shape == (3, item["height"], item["width"])


def test_an_image_of_a_coco_file_without_annotations_is_not_one_without_objects(tmp_path, dataset):
    """Detectron2 reads the first as the second."""
    images = [{"id": x["image_id"], **{key: x[key] for key in ("file_name", "width", "height")}} for x in dataset]
    file = tmp_path / "unlabeled.json"
    file.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "thing"}]}))
    read = load_coco_json(str(file), str(tmp_path))
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    assert "instances" in mapper(read[0])
    assert "instances" not in mapper(without_labels(read)[0])


def test_detectron2s_loader_groups_a_mixture_by_aspect_ratio(dataset):
    mixture = dataset + without_labels(dataset)
    for item in dataset:
        item.pop("sem_seg_file_name")
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    loader = build_detection_train_loader(mixture, mapper=mapper, total_batch_size=2, aspect_ratio_grouping=True)
    batches = list(itertools.islice(loader, 16))
    assert all(len({x["width"] > x["height"] for x in batch}) == 1 for batch in batches)
    everything = list(itertools.chain.from_iterable(batches))
    assert all(("instances" in x) is not x.get("unlabeled", False) for x in everything)
    assert {(x["image_id"], "unlabeled" in x) for x in everything} == {(i, u) for i in range(4) for u in (True, False)}
