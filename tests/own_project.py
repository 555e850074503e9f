"""A project of a user's own: a config that distils, one of its teacher, and 30 images in COCO's format. Not a test."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

COMMON = """
import d2kd
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator
from d2kd.losses import BinaryClassificationKD
from .tiny_retinanet import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/teacher"
model.test_score_thresh = 0.0  # untrained as it is, it detects something
"""
MINE = """
_losses = dict(mine=L(BinaryClassificationKD)(weight=2.0))
_checkpoint = "output/teacher/model_final.pth"
model = d2kd.distill(model, teacher=model, teacher_checkpoint=_checkpoint, losses=_losses)
"""
EVALUATOR = """
class Count(DatasetEvaluator):
    def reset(self):
        self.images = 0
    def process(self, inputs, outputs):
        self.images += len(inputs)
    def evaluate(self):
        return {"found": {"images": self.images, "share": 0.5}}

dataloader.evaluator = L(Count)()
"""


def write_project(folder: Path) -> None:
    """
    Write ``mine.py``, ``counted.py`` (with another evaluator), ``big_teacher.py`` and ``data`` (64 x 64 pixels, two
    classes) into ``folder``. Paths in them are relative to it; the configs read ``$TINY_DATASET``, which is "data".
    """
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"data/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        x, y = map(int, rng.integers(0, 32, 2))
        target = {"bbox": [x, y, 24, 24], "area": 24 * 24, "category_id": i % 2, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, **target})
    categories = [{"id": i, "name": f"class{i}"} for i in range(2)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data/instances.json").write_text(json.dumps(content))
    shutil.copy(Path(__file__).with_name("engine") / "tiny_retinanet.py", folder)
    (folder / "big_teacher.py").write_text(COMMON + "train.max_iter = 2\n")
    (folder / "mine.py").write_text(COMMON + MINE)
    (folder / "counted.py").write_text(COMMON + MINE + EVALUATOR)
