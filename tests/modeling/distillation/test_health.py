"""What makes distillation useless stops training in a sentence, and watching for it changes nothing."""

import copy
import logging
from contextlib import contextmanager

import pytest
import torch
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import ConstantParamScheduler, LinearParamScheduler

import d2kd
from d2kd.losses import DistillationLoss, DynamicLocalizationDistillation, FeatureImitation, SoftmaxClassificationKD
from d2kd.modeling.distillation import health, preflight
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, make_losses, preset, run_step
from tests.nodes import pair

PATIENCE = 6  # here, instead of 50 steps
STEPS = PATIENCE + 2
BATCH = make_batch(sizes=((32, 32),), objects=2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", PATIENCE)
    monkeypatch.setattr(preflight, "BATCHES", 1000)  # these teachers have random weights


def bckd(seed=1, **fields):
    return distilled(build_detector("FCOS"), build_detector("FCOS", seed=seed), make_losses("bckd", **fields))


def train(model, optimizer=None, steps=STEPS, step_storage=True, batch=BATCH, accumulate=1):
    """A loop of one's own; what was logged last, with its iteration."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    logged = {}
    with EventStorage(0) as storage:
        for step in range(steps):
            sum(model(batch).values()).backward()
            if step % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()
                if step_storage:
                    storage.step()
            logged.update(storage.latest())
    return logged


@contextmanager
def stopped(*parts, kind=ValueError):
    with pytest.raises(kind) as error:
        yield error
    for part in parts:
        assert part in str(error.value)


# ---- what stops ------------------------------------------------------------------------------------------------------


class Silent(DistillationLoss):
    """A term that is exactly zero, in the graph."""

    task = "cls"

    def level_loss(self, source, teacher, level, region):
        return (source.logits[level] * 0).sum()


@pytest.mark.parametrize("cause", ["nothing to compare", "the same network", "one class"])
def test_a_term_that_is_exactly_zero(cause):
    teacher = build_detector("FCOS", seed=1)
    if cause == "the same network":
        model = distilled(build_detector("FCOS"), build_detector("FCOS"), make_losses("bckd"))
        told = ("loss_kd_bckd_", "is model.teacher.checkpoint the file that the student starts from")
    elif cause == "one class":
        student, teacher = (build_detector("FCOS", num_classes=1, seed=seed) for seed in (0, 1))
        model = distilled(student, teacher, {"soft": SoftmaxClassificationKD()})
        told = ("loss_kd_soft ", "a softmax over one class")
    else:
        model = distilled(build_detector("FCOS"), teacher, {"silent": Silent()})
        told = ("loss_kd_silent ", "has it nothing to compare", "model.losses.silent=null")
    batch = make_batch(sizes=((32, 32),))
    batch[0]["instances"].gt_classes.zero_()
    rate = 0.0 if cause == "the same network" else 1e-3
    with stopped(f"At iteration {PATIENCE - 1} ", "exactly 0 on all ranks for 6 steps with objects", *told):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # as the teacher's
        train(model, torch.optim.SGD(model.parameters(), lr=rate), batch=batch)


def test_steps_without_objects_do_not_count():
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), {"silent": Silent()})
    train(model, batch=make_batch(sizes=((32, 32),), objects=0))


def test_an_empty_region():
    batch = make_batch(sizes=((32, 32),))
    batch[0]["instances"].gt_boxes.tensor.sub_(200.0)
    with stopped("the region of model.losses.bckd_cls (inside_box) had been empty on all ranks", "for 6 steps"):
        train(bckd(region="inside_box"), batch=batch)


def scheduled():
    return bckd(schedule=LinearParamScheduler(start_value=0.0, end_value=1.0), schedule_iters=500)


def test_a_storage_that_nobody_steps():
    with stopped("at iteration 0 for 6 steps that changed the student", "bckd_cls", "storage.step()"):
        train(scheduled(), step_storage=False)


def test_a_learned_temperature_reads_the_storage_too():
    losses = {"dlt": DynamicLocalizationDistillation(kind="learned", region="all_locations")}
    with stopped("model.losses.dlt would never leave"):
        train(distilled(build_detector("GFL"), build_detector("GFL", seed=1), losses), step_storage=False)


def test_without_a_schedule_nobody_needs_to_step_it():
    train(bckd(), step_storage=False)


def test_gradients_of_many_steps_are_summed_up():
    train(scheduled(), accumulate=PATIENCE + 1)
    train(with_projector(), accumulate=2 * STEPS)


def with_projector():
    losses = {"features": FeatureImitation(region="inside_box", projector_channels=[8, 8])}
    return distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), losses)


@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("over", ["student", "model"])
def test_a_projector_in_no_optimizer_group(over, kind):
    model = with_projector()
    parameters = d2kd.student(model).parameters() if over == "student" else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=1e-3, **kind)
    if over == "model":
        train(model, optimizer)
        return
    with stopped("0 of the 2 parameters", "distillation.losses.features.projector.", "not over d2kd.student(model)"):
        train(model, optimizer)


def test_a_student_that_is_frozen():
    model = with_projector()
    model.student.requires_grad_(False)
    with stopped("No parameter of the student requires gradient"):
        run_step(model, BATCH)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.train(), "modules are in training mode (first '')"),
        (lambda x: x.backbone.bottom_up.train(), "(first 'backbone.bottom_up')"),
        (lambda x: x.requires_grad_(True), "parameters require gradient"),
        (lambda x: x.head.cls_score.bias.add_(1), "1 of the teacher's"),
        (lambda x: x.backbone.bottom_up.stem.conv1.norm.running_mean.mul_(2), "running_mean"),
    ],
)
def test_a_teacher_that_does_not_stay_what_it_was(change, told):
    teacher = build_detector("FCOS", seed=1)
    model = distilled(build_detector("FCOS"), teacher, "bckd")
    run_step(model, BATCH)
    with torch.no_grad():
        change(teacher)
    changed = copy.deepcopy(teacher.state_dict())
    with stopped(told, "model.teacher.model"):
        run_step(model, BATCH)
    assert all(torch.equal(x, changed[name]) for name, x in teacher.state_dict().items())


def test_a_model_that_is_moved_or_copied_is_watched_anew():
    model = with_projector()
    run_step(model, BATCH)
    model.double()
    run_step(model.float(), BATCH)
    copied = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="copies have no teacher"):
        run_step(copied, BATCH)
    run_step(model, BATCH)


# ---- what is logged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["crosskd_pkd", "ftpd_tid"])
def test_weights_and_random_numbers_are_the_same_with_and_without(family, method, monkeypatch):
    def weights():
        torch.manual_seed(5)
        model = pair(family, method)
        logged = train(model, steps=6)
        return {**model.state_dict(), "drawn": torch.rand(3)}, {x for x in logged if x.endswith("_gradient_share")}

    plain, none = weights()
    monkeypatch.setattr(health, "SHARE_PERIOD", 1)
    monkeypatch.setattr(health, "FIRST_SHARE", 0)
    watched, measured = weights()
    assert not none and measured
    assert all(torch.equal(watched[name], x) for name, x in plain.items())


def test_what_is_logged(caplog):
    model = pair("FCOS", "bckd")
    with caplog.at_level(logging.INFO, logger=health.logger.name):
        logged = train(model, steps=21)
    assert logged["kd/objects"][0] == 2
    assert 0 < logged["kd/teacher_score_at_positives"][0] < 1
    for name in model.losses:
        value, iteration = logged[f"kd/{name}_gradient_share"]
        assert value > 0 and iteration == 19
    (line,) = [x.getMessage() for x in caplog.records if "Gradient at the student's FPN outputs" in x.getMessage()]
    assert "bckd_cls " in line and "bckd_loc " in line


def far(weight, steps, caplog, monkeypatch, schedule=None):
    monkeypatch.setattr(health, "SHARE_PERIOD", 20)
    losses = preset("bckd", "FCOS")
    loss = losses["bckd_cls"]
    loss.weight, loss.schedule, loss.schedule_iters = weight, schedule, schedule and 1000
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), losses)
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), steps=steps)
    return [x.getMessage() for x in caplog.records if "would make them equal" in x.getMessage()]


@pytest.mark.parametrize(("weight", "told"), [(1e4, " times the detection"), (1e-4, " of the detection")])
def test_a_term_that_is_far_from_the_detection_losses_is_warned_of_once(weight, told, caplog, monkeypatch):
    assert far(weight, 39, caplog, monkeypatch) == []  # one measurement may be chance
    (line,) = far(weight, 90, caplog, monkeypatch)
    assert line.startswith("loss_kd_bckd_cls pulls with") and told in line
    equal = line.split("model.losses.bckd_cls.weight=")[1].split()[0]
    assert f"'bckd_cls.weight={equal}'" in line
    caplog.clear()
    assert far(float(equal), 90, caplog, monkeypatch) == []


@pytest.mark.parametrize(("scheduled", "warned"), [(0.4, False), (0.6, True)])
def test_a_term_that_warms_up_is_not_judged_before_half_of_its_weight(scheduled, warned, caplog, monkeypatch):
    lines = far(1e5, 90, caplog, monkeypatch, ConstantParamScheduler(scheduled))
    assert bool(lines) is warned


@pytest.mark.parametrize("frozen", ["backbone", "head compiled"])
def test_where_shares_cannot_be_measured_that_is_said_and_training_goes_on(frozen, caplog):
    model = pair("FCOS", "bckd")
    if frozen == "backbone":
        model.backbone.requires_grad_(False)
    else:

        class OnePass(torch.autograd.Function):
            """As the graphs of compiled modules, which free what they kept."""

            @staticmethod
            def forward(ctx, x):
                return x.view_as(x)

            @staticmethod
            def backward(ctx, grad):
                if torch._C._autograd._get_current_graph_task_keep_graph():
                    raise RuntimeError("This backward function was compiled with non-empty donated buffers")
                return grad

        model.head.cls_subnet.register_forward_hook(lambda module, args, out: OnePass.apply(out))
    logged = train(model, steps=21)
    assert not any(name.endswith("_gradient_share") for name in logged)
    assert len([x for x in caplog.records if "gradient shares are not measured" in x.getMessage()]) == 1
