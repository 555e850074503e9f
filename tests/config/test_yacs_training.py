"""A distilled yacs config under Detectron2's own DefaultTrainer and DefaultPredictor."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from tests.logs import logs_of_its_own
from tests.yacs_projects import plain, save, wrapped, write_config

RESNET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[x] for x in (16, 32, 64, 128, 256)]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]], "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64),
    *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.001, "SOLVER.MAX_ITER", 3),
]


def tiny_dataset(folder):
    """Three images with one object each."""
    records = []
    for index, box in enumerate([(4, 6, 40, 44), (16, 10, 60, 50), (8, 20, 30, 60)]):
        pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.byte().numpy()).save(folder / f"{index}.png")
        objects = [{"bbox": list(map(float, box)), "bbox_mode": BoxMode.XYXY_ABS, "category_id": index}]
        file = str(folder / f"{index}.png")
        records.append({"file_name": file, "image_id": index, "height": 64, "width": 64, "annotations": objects})
    return records


@pytest.fixture(scope="module", autouse=True)
def logs():
    """DefaultTrainer's set-up of logs would outlive these tests."""
    with logs_of_its_own():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A distilled run of three iterations under DefaultTrainer: (config, folder); the teacher is gone afterwards."""
    folder = tmp_path_factory.mktemp("yacs")
    records = tiny_dataset(folder)
    DatasetCatalog.register("tests_yacs", lambda: records)
    MetadataCatalog.get("tests_yacs").set(thing_classes=["a", "b", "c"])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    weights = save(build_model(plain(RESNET)), folder)
    base = write_config(plain(RESNET), folder / "base.yaml")
    (folder / "teacher.yaml").write_text(f"_BASE_: {Path(base).name}\nMODEL:\n  DEVICE: cuda:7\n")
    cfg = wrapped(RESNET, METHOD="crosskd", TEACHER_CONFIG=str(folder / "teacher.yaml"), TEACHER_WEIGHTS=weights)
    cfg.OUTPUT_DIR = str(folder / "run")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tests_yacs",), ()
    cfg.freeze()
    os.mkdir(cfg.OUTPUT_DIR)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    hidden = folder / "hidden"
    hidden.mkdir()
    for name in ("teacher.yaml", "teacher.pth"):
        (folder / name).rename(hidden / name)
    yield cfg, folder
    shutil.rmtree(folder)  # checkpoints of a ResNet are large
    DatasetCatalog.remove("tests_yacs")
    MetadataCatalog.remove("tests_yacs")


def metrics_of(cfg):
    return [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]


def final(cfg):
    return str(Path(cfg.OUTPUT_DIR, "model_final.pth"))


def test_default_trainer_logs_every_term(run):
    metrics = metrics_of(run[0])[0]
    assert metrics["iteration"] == 2
    assert {k for k in metrics if k.startswith("loss_")} == {
        *("loss_cls", "loss_box_reg", "loss_kd_crosskd_cls", "loss_kd_crosskd_loc"),
    }
    assert min(value for key, value in metrics.items() if key.startswith("loss_")) > 0


def test_its_checkpoint_is_one_of_the_plain_detector(run):
    cfg, _ = run
    stock = build_model(plain(RESNET))
    saved = torch.load(final(cfg), weights_only=False)["model"]
    result = stock.load_state_dict(saved, strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys and all(key.startswith("distillation.") for key in result.unexpected_keys)


def test_it_resumes(run):
    cfg, folder = run
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(shutil.copytree(cfg.OUTPUT_DIR, folder / "resumed"))
    cfg.SOLVER.MAX_ITER = 5
    cfg.MODEL.DISTILLATION.TEACHER_CONFIG = str(folder / "hidden/teacher.yaml")
    cfg.MODEL.DISTILLATION.TEACHER_WEIGHTS = str(folder / "hidden/teacher.pth")
    shutil.copy(folder / "base.yaml", folder / "hidden")
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    saved = torch.load(final(cfg), weights_only=False)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    assert saved["distillation.loss_normalizer_0"] > 0
    trainer.train()
    last = metrics_of(cfg)[-1]
    assert last["iteration"] == 4 and last["loss_kd_crosskd_cls"] > 0
    assert not torch.equal(
        torch.load(final(cfg), weights_only=False)["model"]["head.cls_score.weight"], saved["head.cls_score.weight"]
    )


def test_default_predictor_without_the_teacher(run):
    """On the plain config and on the distilled one."""
    cfg, folder = run
    assert not os.path.exists(cfg.MODEL.DISTILLATION.TEACHER_CONFIG)
    found = []
    for config in (plain(RESNET), cfg.clone()):
        config.defrost()
        config.MODEL.WEIGHTS = final(cfg)
        image = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(5))
        found.append(DefaultPredictor(config)(image.byte().numpy())["instances"])
    assert len(found[0]) > 0
    assert torch.equal(found[0].scores, found[1].scores)
    assert torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)


class Count(DatasetEvaluator):
    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += sum("instances" in output for output in outputs)

    def evaluate(self):
        return {"images": self.images}


def test_evaluation_without_the_teacher(run):
    cfg = run[0].clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ("tests_yacs",)
    model = DefaultTrainer.build_model(cfg)
    DetectionCheckpointer(model).load(final(cfg))
    assert DefaultTrainer.test(cfg, model, evaluators=[Count()]) == {"images": 3}
