import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, Instances

from d2kd.engine import ConfigError, evaluate, teacher_predictor
from d2kd.engine.evaluation import write_evaluation

NAN = math.nan


class Fixed(DatasetEvaluator):
    def __init__(self, results):
        self._results = results

    def evaluate(self):
        return self._results


def run(results, detections):
    def model(batch):
        return [{"instances": Instances((8, 8), scores=torch.ones(detections))} for _ in batch]

    return evaluate(model, [[{}]] * 2, Fixed(results))


@pytest.mark.parametrize("results", [{}, {"bbox": {"AP": NAN, "AP50": NAN, "AP75": NAN, "APs": NAN}}])
def test_nothing_detected_is_ap_zero(results):
    bbox = run(results, 0)["bbox"]
    assert (bbox["AP"], bbox["AP50"], bbox["AP75"]) == (0.0, 0.0, 0.0)
    assert math.isnan(bbox.get("APs", NAN))  # no such objects, perhaps


def test_other_results_stay():
    assert run({"bbox": {"AP": 12.5}}, 3) == {"bbox": {"AP": 12.5}}
    assert run({}, 3) == {}  # a test set without annotations
    assert math.isnan(run({"bbox": {"AP": NAN}}, 3)["bbox"]["AP"])


def test_what_other_evaluators_return_is_not_filled_in():
    assert run({"found": {"share": 0.5}}, 0) == {"found": {"share": 0.5}}


def test_several_evaluators():
    evaluators = [Fixed({"bbox": {"AP": 1.0}}), Fixed({"speed": 2.0})]
    results = evaluate(lambda batch: [{"instances": [0]}], [[{}]], evaluators)
    assert results == {"bbox": {"AP": 1.0}, "speed": 2.0}


@pytest.mark.parametrize("teacher_format", ["BGR", "RGB"])
def test_teacher_sees_its_own_channel_order(teacher_format):
    seen = []
    teacher = SimpleNamespace(detector=lambda batch: seen.extend(batch), input_format=teacher_format, class_map=None)
    image = torch.arange(3.0).view(3, 1, 1)
    teacher_predictor(SimpleNamespace(teacher=teacher, input_format="BGR"))([{"image": image, "height": 5}])
    assert torch.equal(seen[0]["image"], image if teacher_format == "BGR" else image.flip(0))
    assert seen[0]["height"] == 5


def test_the_teachers_detections_get_the_students_classes(caplog):
    """A class map renumbers them; those of classes that the student lacks are dropped, and that is said."""

    def detector(batch):
        return [{"instances": Instances((8, 8), pred_classes=torch.tensor([3, 0, 2, 3]), scores=torch.arange(4.0))}]

    detector.num_classes = 5
    teacher = SimpleNamespace(detector=detector, input_format="BGR", class_map={3: 0, 0: 1})
    with caplog.at_level("INFO", "detectron2"):
        predict = teacher_predictor(SimpleNamespace(teacher=teacher, input_format="BGR"))
    assert "3 classes that it leaves out are dropped" in caplog.text
    (found,) = predict([{}])
    assert found["instances"].pred_classes.tolist() == [0, 1, 0]
    assert found["instances"].scores.tolist() == [0.0, 1.0, 3.0]


def test_boxes_of_merged_classes_suppress_one_another():
    """A car and a truck of one object are one vehicle; of another class, or elsewhere, they stay."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7.5], [0, 0, 8, 8], [20, 20, 28, 28]])
    scores, classes = torch.tensor([0.6, 0.9, 0.5, 0.4]), torch.tensor([0, 1, 2, 1])

    def detector(batch):
        return [{"instances": Instances((32, 32), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)}]

    detector.num_classes, detector.test_nms_thresh = 3, 0.6
    for class_map, expected in (({0: 1, 1: 1, 2: 0}, [0.9, 0.5, 0.4]), ({0: 1, 1: 2, 2: 0}, [0.6, 0.9, 0.5, 0.4])):
        teacher = SimpleNamespace(detector=detector, input_format="BGR", class_map=class_map)
        (found,) = teacher_predictor(SimpleNamespace(teacher=teacher, input_format="BGR"))([{}])
        assert found["instances"].scores.tolist() == pytest.approx(expected)


def test_a_test_set_without_annotations_has_no_ap(tmp_path, caplog):
    """And so no best checkpoint, which an AP of 0 would give; it is said once."""
    for annotations in ({}, {"annotations": []}):
        content = {"images": [{"id": 1, "file_name": "x.png", "width": 8, "height": 8}], **annotations}
        content["categories"] = [{"id": 1, "name": "thing"}]
        file = tmp_path / f"test{len(annotations)}.json"
        file.write_text(json.dumps(content))
        name = f"unannotated:{file}"
        register_coco_instances(name, {}, str(file), str(tmp_path))
        get_detection_dataset_dicts(name, filter_empty=False)
        for detections in (0, 2):
            boxes = Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0]] * detections).view(-1, 4))
            zeros = torch.zeros(detections, dtype=torch.int64)
            found = {"instances": Instances((8, 8), pred_boxes=boxes, scores=zeros + 0.5, pred_classes=zeros)}
            evaluator = COCOEvaluator(name, tasks=["bbox"])
            assert evaluate(lambda batch, found=found: [found], [[{"image_id": 1}]], evaluator) == {}
    assert caplog.text.count("no best checkpoint is kept") == 1


def test_plain_student_has_no_teacher_to_check():
    with pytest.raises(ConfigError, match="model.teacher"):
        teacher_predictor(SimpleNamespace(teacher=None))


class TestWriteEvaluation:
    def test_numbers_of_all_kinds_and_nan(self, tmp_path, caplog):
        results = {"bbox": {"AP": np.float32(12.5), "AP-card": NAN, "images": 4}, "note": Path("a")}
        with caplog.at_level(logging.INFO):
            write_evaluation(tmp_path / "run", {"datasets": ["cards_val"], "results": results, "complete": True})
        assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == {
            "datasets": ["cards_val"],
            "results": {"bbox": {"AP": 12.5, "AP-card": None, "images": 4}, "note": "a"},
            "complete": True,
        }
        assert f"The results are in {tmp_path / 'run' / 'evaluation.json'}" in caplog.text

    def test_one_that_was_there_is_replaced_as_a_whole(self, tmp_path):
        for weights in ("a long name of a file.pth", "b.pth"):
            write_evaluation(tmp_path, {"weights": weights})
        assert json.loads((tmp_path / "evaluation.json").read_text()) == {"weights": "b.pth"}
        assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]
