"""Labels of classes that a detector does not have, and images of other channels, get a sentence."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling.backbone import BasicStem

from d2kd.engine import Trainer
from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, NUM_CLASSES, build_detector, distilled, make_batch, run_step
from tests.modeling.distillation.test_device import BEYOND, student_alone, waits_of


def with_class(number, batch=None):
    """A batch whose second image has an object of that class, or of the classes in a tensor."""
    batch = batch or make_batch()
    batch[1]["file_name"] = "street.jpg"
    batch[1]["instances"].gt_classes[1] = number
    return batch


def with_channels(family, channels, seed=0, **kwargs):
    statistics = dict(pixel_mean=[100.0] * channels, pixel_std=[50.0] * channels)
    detector = build_detector(family, seed=seed, **statistics, **kwargs)
    detector.backbone.bottom_up.stem = BasicStem(channels, 4, norm="BN")
    return detector


def grey_batch(channels=1):
    batch = make_batch()
    for item in batch:
        item["image"] = item["image"][:1].expand(channels, -1, -1)
    return batch


SENTENCE = (
    "An object of street.jpg has class {}, but {}.num_classes is 3, so that classes are 0 to 2: correct the annotations"
)


@pytest.mark.parametrize("number", [NUM_CLASSES, NUM_CLASSES + 1, -1])
@pytest.mark.parametrize("method", [None, "bckd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_that_the_student_does_not_have(family, method, number):
    teacher = build_detector(family, seed=1) if method else None
    model = distilled(build_detector(family), teacher, method).train()
    with pytest.raises(ValueError, match=SENTENCE.format(number, "model.student")):
        run_step(model, with_class(number))


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([30.0, 30.0, 10.0, 10.0], "that is inverted"),
        ([float("nan")] * 4, "that is not finite"),
        ([0.0, 0.0, float("inf"), 8.0], "that is not finite"),
        ([-float("inf"), 0.0, 8.0, 8.0], "that is not finite"),
    ],
)
@pytest.mark.parametrize("method", [None, "bckd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_box_that_no_image_can_have(family, method, box, kind):
    teacher = build_detector(family, seed=1) if method else None
    model = distilled(build_detector(family), teacher, method).train()
    batch = make_batch()
    batch[1]["file_name"] = "street.jpg"
    batch[1]["instances"].gt_boxes.tensor[0] = torch.tensor(box)
    with pytest.raises(ValueError, match=f"street.jpg has a box {kind}, .*: correct it in the annotations or in"):
        run_step(model, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_detector_in_the_trainer(family):
    model = build_detector(family).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, [with_class(NUM_CLASSES)], optimizer)
    with pytest.raises(ValueError, match=SENTENCE.format(NUM_CLASSES, "model")):
        trainer.train(0, 1)
    if family == "GFL":
        SimpleTrainer(model, [with_class(NUM_CLASSES)], optimizer).train(0, 1)  # Detectron2's says nothing


def test_labels_that_are_not_used_may_have_any():
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd").train()
    batch = with_class(99)
    batch[1]["unlabeled"] = True
    run_step(model, batch)


def test_labels_on_a_device_do_not_make_the_host_wait(device):
    model = distilled(build_detector("GFL"), build_detector("GFL", seed=1), "bckd").train().to(device.device)
    batch = make_batch()
    for item in batch:
        item["instances"] = item["instances"].to(device.device)
    waits_of(model, batch, device)  # loads the teacher
    waits = waits_of(model, batch, device) - student_alone("GFL", batch, device)
    assert waits.total() <= BEYOND, waits
    with pytest.raises(ValueError, match=SENTENCE.format(3, "model.student")):
        run_step(model, with_class(NUM_CLASSES, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_channel_works_where_both_have_it(family):
    losses = dict(kd=BinaryClassificationKD())
    teacher = dict(model=with_channels(family, 1, seed=1, **formats(family, "L")))
    model = DistilledDetector(student=with_channels(family, 1, **formats(family, "L")), teacher=teacher, losses=losses)
    assert model.input_format == "L"
    assert run_step(model.train(), grey_batch())["loss_kd_kd"] > 0
    with pytest.raises(ValueError, match="an image of this batch has 3 channels, but model.student.pixel_mean has 1: "):
        run_step(model, make_batch())


def formats(family, value):
    return {} if family == "FCOS" else {"input_format": value}  # it does not keep any


def test_other_numbers_of_channels_are_refused():
    model = distilled(build_detector("FCOS"), with_channels("FCOS", 1), "bckd").train()
    with pytest.raises(ValueError, match=r"channels of the student's images are 3 .* the teacher's 1 "):
        model.load_teacher()
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd").train()
    with pytest.raises(ValueError, match="an image of this batch has 1 channel, but model.student.pixel_mean has 3: "):
        run_step(model, grey_batch())  # which broadcasts


def test_four_channels_are_never_reversed():
    def model(ours, theirs):
        teacher = dict(model=with_channels("FCOS", 4, seed=1), input_format=theirs, engine="eager")
        student = with_channels("FCOS", 4)
        losses = dict(kd=BinaryClassificationKD())
        return DistilledDetector(student=student, teacher=teacher, losses=losses, input_format=ours).train()

    assert run_step(model("BGR", "BGR"), grey_batch(4))["loss_kd_kd"] > 0
    with pytest.raises(ValueError, match="'BGR' with 4 channels .* the teacher's 'RGB' .*: only BGR and RGB of three"):
        model("BGR", "RGB").load_teacher()
