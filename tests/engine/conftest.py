"""The images of tiny_retinanet.py."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="package", autouse=True)
def dataset(tmp_path_factory):
    """For tiny_retinanet.py: eight random images of 64 x 64 with one object each, as COCO json."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        box = [int(v) for v in rng.integers(4, 28, 2)] + [20 + i, 24]
        target = {"bbox": box, "area": box[2] * box[3], "category_id": i % 2, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, **target})
    categories = [{"id": i, "name": f"class{i}"} for i in range(2)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_DATASET", str(folder))
        yield
