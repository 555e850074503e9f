"""What checkpoints and teachers reach."""

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.config import ALONE, CONFIG, load_config
from d2kd.data.digits import dataset, get_digits
from d2kd.experiments import evaluations, load_student, plan_run
from d2kd.experiments.evaluations import evaluate_student, evaluate_teacher
from tests.experiments.small import STUDENT, experiment


def test_the_saved_weights_are_evaluated_as_the_config_says(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 4, "test": 5})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = plan_run(experiment(tmp_path, overrides=("train.device=cpu",)), STUDENT, ALONE, 0).load_config()
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    loaded = load_student(cfg, tmp_path / "weights.pth")
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for split in ("val", "test"):
        cfg.dataloader.test.dataset.names = f"digits_{split}"
        metrics = evaluate_student(cfg, tmp_path / "weights.pth")
        assert {"bbox/AP", "bbox/AP50", "bbox/AP-4"} <= set(metrics) and 0 <= metrics["bbox/AP"] < 5
        assert metrics["bbox/APl"] is None  # no object of 96 x 96 pixels


def test_a_teacher_is_evaluated_as_it_would_be_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 4, "test": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    overrides = ("train.device=cpu", f"model.teacher.checkpoint={tmp_path}/teacher.pth")
    of = experiment(tmp_path, overrides=overrides)
    student = plan_run(of, STUDENT, CONFIG, 0).load_config()
    alone = load_config("digits/fcos_teacher.py", ["train.device=cpu", "model.student.test_score_thresh=0.0"])
    student.model.teacher.model.test_score_thresh = 0.0  # of random weights, so that there are detections
    torch.manual_seed(0)
    DetectionCheckpointer(instantiate(alone.model), str(tmp_path)).save("teacher")
    metrics = evaluate_teacher(student)
    assert metrics == evaluate_student(alone, tmp_path / "teacher.pth")
    # Its student may be compared by a metric of averaged weights, of which a teacher has none.
    monkeypatch.setattr(evaluations, "evaluate", lambda *_: {"bbox": {"AP": 60.0, "APl": float("nan")}})
    student.train.ema = {"decay": 0.9}
    same = {"bbox/AP": 60.0, "bbox/APl": None}
    assert evaluate_teacher(student) == same | {f"ema/{name}": value for name, value in same.items()}


def test_an_evaluation_changes_no_annotations(tmp_path, monkeypatch):
    """Of a dataset without a file, COCOEvaluator writes one, and names it as the dataset's."""
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    content = get_digits("digits_val")
    DatasetCatalog.register("mine", lambda: content)
    try:
        MetadataCatalog.get("mine").thing_classes = ["a", "b", "c", "d", "e"]
        mine = (f"+dataloader.evaluator.output_dir={tmp_path}", "dataloader.evaluator.dataset_name=mine")
        cfg = load_config(STUDENT, mine, method=ALONE)
        monkeypatch.setattr(evaluations, "load_student", lambda cfg, checkpoint: None)
        monkeypatch.setattr(evaluations, "evaluate", lambda model, loader, evaluator: {"bbox": {"AP": 1.0}})
        assert evaluate_student(cfg, "weights.pth") == {"bbox/AP": 1.0}
        assert (tmp_path / "mine_coco_format.json").is_file()
        assert MetadataCatalog.get("mine").get("json_file") is None
        assert MetadataCatalog.get("digits_val").json_file.endswith("digits_val.json")
    finally:
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")
