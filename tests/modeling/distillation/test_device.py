"""Training on a device: what lies where, and how often the host waits for it."""

from collections import Counter

import pytest
import torch

from d2kd.losses import DynamicBoxKD, DynamicLocalizationDistillation, FeatureImitation, IoULocalizationKD
from d2kd.methods import METHODS
from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, preset, run_step
from tests.modeling.detectors.helpers import build

#: Times that the host waits in a step beyond those of the detector alone: for the boxes' check before its losses, and
#: for the other checks and what is logged.
BEYOND = 2


@pytest.fixture
def deterministic():
    """Operators whose sums depend on the order of threads are refused."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def all_losses(family):
    """The losses of all methods for a family, in one step."""
    return {
        f"{method}_{name}": loss
        for method in ("bckd", "ld", "crosskd", "ftpd_hetero", "tid_reliable", "pkd", "cwd")
        if family in METHODS[method] and (method != "ld" or family == "GFL")
        for name, loss in preset(method, family, tail=1).items()
    }


def step(model, batch):
    """The losses of one training step, without an optimiser's."""
    losses = run_step(model, [dict(item) for item in batch])
    sum(losses.values()).backward()
    return losses


def waits_of(model, batch, device) -> Counter:
    """Of a step, with an optimiser's."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    optimizer.zero_grad()
    device.reset()
    step(model, batch)
    optimizer.step()
    return device.waits


def beyond(waits: Counter, alone: Counter) -> str:
    """The lines where ``waits`` are more than ``alone``, or "" if they are few enough."""
    more = waits - alone
    return "" if more.total() <= BEYOND else "\n".join(f"{count} x {line}" for line, count in more.items())


def student_alone(family, batch, device, **kwargs):
    return waits_of(build_detector(family, **kwargs).to(device.device).train(), batch, device)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method(family, device, deterministic):
    """The numbers are the CPU's, and the host waits twice, whatever the batch."""
    small, large = make_batch(), make_batch([(40, 48), (32, 60), (64, 33)], objects=[9, 0, 5], seed=3)

    def build_pair():
        student, teacher = build_detector(family), build_detector(family, seed=1)
        return distilled(student, teacher, all_losses(family)).train()

    expected = {name: value.detach() for name, value in step(build_pair(), large).items()}
    model = build_pair().to(device.device)
    found = {name: value.detach().cpu() for name, value in step(model, large).items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for batch in (small, large):
        alone = student_alone(family, batch, device)
        assert beyond(waits_of(model, batch, device), alone) == ""


@pytest.mark.parametrize(
    "family, options, expected",
    [
        ("GFL", {}, 1),
        ("ATSS", {}, 1),
        ("RetinaNet", {}, 1),
        ("RetinaNet", dict(box_reg_loss_type="giou"), 2),
        ("FCOS", {}, 2),
    ],
)
def test_boxes_are_checked_where_an_assertion_would_fail(family, options, expected, device):
    batch = make_batch()
    student, teacher = (build_detector(family, seed=seed, **options) for seed in (0, 1))
    model = distilled(student, teacher, preset("bckd", family)).to(device.device).train()
    step(model, batch)  # the teacher is loaded
    more = waits_of(model, batch, device) - student_alone(family, batch, device, **options)
    assert more.total() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_on_the_device_already(family, device):
    student, teacher = (build_detector(family, seed=seed).to(device.device) for seed in (0, 1))
    model = distilled(student, teacher, preset("ftpd_tid", family)).train()
    assert {x.device.type for x in model.state_dict().values()} == {device.device.type}
    step(model, make_batch())


CROSSED = [("GFL", "RetinaNet"), ("RetinaNet", "FCOS"), ("FCOS", "ATSS"), ("ATSS", "GFL")]


@pytest.mark.parametrize("family, teacher", CROSSED)
def test_families_that_cross_with_a_class_map(family, teacher, device):
    """A teacher in other anchors labels its own: what its own label_anchors waits for comes on top."""
    losses = preset("crosskd", teacher, tail=1)
    model = DistilledDetector(
        student=build_detector(family),
        teacher=dict(model=build_detector(teacher, seed=1, num_classes=4), class_map={0: 0, 3: 2}, engine="eager"),
        losses=losses,
    )
    model.to(device.device).train().load_teacher()
    batch = make_batch(objects=[4, 3])
    alone = student_alone(family, batch, device)
    step(model, batch)  # tables of classes are made once
    waits = waits_of(model, batch, device)
    labelling = Counter({line: count for line, count in waits.items() if line.startswith("detectron2/")})
    assert beyond(waits, alone | labelling) == ""


@pytest.mark.parametrize("method", ["bckd", "crosskd", "tid"])
def test_a_class_map(method, device):
    model = DistilledDetector(
        student=build_detector("GFL"),
        teacher=dict(model=build_detector("GFL", seed=1, num_classes=4), class_map={0: 0, 3: 2}, engine="eager"),
        losses=preset(method, "GFL", tail=1),
    )
    model.to(device.device).train()
    batch = make_batch(objects=[4, 3])
    step(model, batch)  # tables of classes are made once
    assert beyond(waits_of(model, batch, device), student_alone("GFL", batch, device)) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_images_without_labels(family, device):
    batch = make_batch(objects=3)
    model = distilled(build_detector(family), build_detector(family, seed=1), preset("ftpd_tid", family))
    model.to(device.device).train()
    step(model, batch)  # the teacher is loaded
    alone = student_alone(family, batch[1:], device)
    del batch[0]["instances"]
    labelling = student_alone(family, [batch[1]], device)  # of the others, too
    assert beyond(waits_of(model, batch, device), alone + labelling) == ""


def test_projectors(device):
    model = DistilledDetector(
        student=build_detector("FCOS"),
        teacher=dict(model=build_detector("FCOS", seed=1, conv_dims=(16, 16))),
        losses=preset("crosskd_pkd", "FCOS", tail=1),
        tap_projector_channels=[8, 16],
    ).train()
    step(model.to(device.device), make_batch())
    assert all(p.grad.isfinite().all() for p in model.distillation.tap_projectors.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation(family, device):
    model = distilled(build_detector(family), build_detector(family, seed=1), preset("crosskd", family, tail=1)).eval()
    with torch.no_grad():
        expected = model(make_batch())
        found = model.to(device.device)(make_batch())
    for one, other in zip(found, expected, strict=True):
        boxes = one["instances"].pred_boxes.tensor
        assert boxes.device.type == device.device.type
        torch.testing.assert_close(boxes.cpu(), other["instances"].pred_boxes.tensor)


OTHERS = {
    "RetinaNet": {
        "fixed": lambda: DynamicBoxKD(kind="fixed"),
        "everywhere": lambda: FeatureImitation(region="general_instances"),
    },
    "GFL": {
        "each": lambda: DynamicLocalizationDistillation(),
        "fine": lambda: FeatureImitation(region="fine_grained"),
        "valuable": lambda: IoULocalizationKD(region=dict(name="valuable_localization", exclude_positives=True)),
    },
    "FCOS": {
        "inside": lambda: FeatureImitation(
            region=dict(name="inside_box", weighting="student_score", exclude_positives=True)
        ),
        "valuable": lambda: IoULocalizationKD(region=dict(name="main_and_valuable", centerness=True)),
        "papers": lambda: IoULocalizationKD(region="gap", normalizer="local_positives", skip_empty_levels=True),
    },
}


@pytest.mark.parametrize("family", OTHERS)
def test_what_no_preset_has(family, device):
    batch = make_batch()
    losses = {name: make() for name, make in OTHERS[family].items()}
    model = distilled(build_detector(family), build_detector(family, seed=1), losses).to(device.device).train()
    step(model, batch)  # the teacher is loaded
    assert beyond(waits_of(model, batch, device), student_alone(family, batch, device)) == ""


@pytest.mark.parametrize("detector", ["DistributionRetinaNet", "DistributionFCOS", "DistributionATSS"])
def test_distributions(detector, device):
    batch = make_batch()
    losses = preset("ld", detector.removeprefix("Distribution")) | {"ftpd": DynamicLocalizationDistillation()}
    model = distilled(build(detector), build(detector, seed=1), losses).to(device.device).train()
    step(model, batch)  # the teacher is loaded
    alone = waits_of(build(detector).to(device.device).train(), batch, device)
    assert beyond(waits_of(model, batch, device), alone) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_autocast(family, dtype, device):
    """Convolutions in half precision, losses in fp32; no wait more."""
    batch = make_batch()

    def build_pair():
        losses = {name: x for name, x in all_losses(family).items() if name.startswith(("crosskd", "ftpd", "pkd"))}
        return distilled(build_detector(family), build_detector(family, seed=1), losses).train()

    expected = {name: value.item() for name, value in run_step(build_pair(), batch).items()}
    model = build_pair().to(device.device)
    model.load_teacher()
    with torch.autocast(device.device.type, dtype=dtype):
        device.reset()
        found = run_step(model, batch)
    waits = device.waits
    sum(found.values()).backward()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=0.03)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert beyond(waits, student_alone(family, batch, device)) == ""
