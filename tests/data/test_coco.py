"""COCO's annotation format, as Detectron2 reads it."""

import json

from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from d2kd.data.coco import coco_json

DATASET = [
    {
        "file_name": "/some/folder/a.jpg",
        "width": 40,
        "height": 30,
        "annotations": [
            {"bbox": [1.004, 2, 11.119, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0},
            {"bbox": [0, 0, 1, 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
        ],
    },
    {"file_name": "b.jpg", "width": 8, "height": 8, "annotations": []},
]


def test_detectron2_reads_what_was_written(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(coco_json(DATASET, ["dog", "cat"], "two images")))
    first, second = load_coco_json(str(tmp_path / "annotations.json"), "images")
    assert (first["file_name"], first["width"], first["height"]) == ("images/a.jpg", 40, 30)
    assert [each["bbox"] for each in first["annotations"]] == [[1.0, 2.0, 10.12, 2.0], [0, 0, 1, 2]]
    assert [each["category_id"] for each in first["annotations"]] == [2, 1]
    assert [each["iscrowd"] for each in first["annotations"]] == [0, 1]
    assert second["annotations"] == []


def test_ids_and_areas():
    content = coco_json(DATASET, ["dog", "cat"], "two images")
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [(each["id"], each["image_id"], each["area"]) for each in content["annotations"]] == [
        (1, 1, 20.24),
        (2, 1, 2),
    ]
    assert content["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
