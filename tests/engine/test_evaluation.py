import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances

from d2kd.engine import ConfigError, evaluate, teacher_predictor

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
    teacher = SimpleNamespace(detector=lambda batch: seen.extend(batch), input_format=teacher_format)
    image = torch.arange(3.0).view(3, 1, 1)
    teacher_predictor(SimpleNamespace(teacher=teacher, input_format="BGR"))([{"image": image, "height": 5}])
    assert torch.equal(seen[0]["image"], image if teacher_format == "BGR" else image.flip(0))
    assert seen[0]["height"] == 5


def test_plain_student_has_no_teacher_to_check():
    with pytest.raises(ConfigError, match="model.teacher"):
        teacher_predictor(SimpleNamespace(teacher=None))
