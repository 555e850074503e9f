"""The order of one step, and what of the teacher runs and is kept in it."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from d2kd.losses import ChannelWiseKD, PearsonFeatureKD
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation import distilled_detector
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, run_step

METHODS = {"bckd": True, "crosskd": True, "tid": True, "pkd": False}  # whether a loss reads predictions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_runs_before_the_student_and_its_head_only_where_a_loss_reads_predictions(family, method):
    student, teacher = build_detector(family), build_detector(family, seed=1)
    model = distilled(student, teacher, get_losses(method, family))
    model.load_teacher()
    assert model.teacher is not None
    calls = []
    with ExitStack() as stack:
        for who, detector in (("student", model), ("teacher", model.teacher.detector)):
            for part in ("backbone", "head"):
                handle = getattr(detector, part).register_forward_pre_hook(
                    lambda *_, name=f"{who}'s {part}": calls.append(name)
                )
                stack.callback(handle.remove)
        run_step(model, make_batch(), iteration=10**6)  # after every schedule
    head = ["teacher's head"] if METHODS[method] else []
    assert calls == ["teacher's backbone", *head, "student's backbone", "student's head"]


@pytest.mark.parametrize("loss", [PearsonFeatureKD, ChannelWiseKD])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_region_of_predictions_makes_the_head_run_and_changes_nothing_else(family, loss):
    """Without the head, a feature loss has the value that it has beside it."""
    values = []
    for region in ("everywhere", "all_locations"):
        torch.manual_seed(0)
        model = DistilledDetector(
            student=build_detector(family),
            teacher=dict(model=build_detector(family, seed=1)),
            losses=dict(kd=loss(region=region)),
        )
        assert model.losses["kd"].reads_predictions == (region != "everywhere")
        batch = make_batch([(48, 64), (48, 64)])  # without padding: all locations are valid on every family
        values.append(run_step(model, batch)["loss_kd_kd"])
    assert torch.equal(*values)


@pytest.mark.parametrize("method", ["pkd", "bckd"])
def test_what_no_loss_reads_of_the_teacher_is_not_kept(method):
    model = distilled(build_detector("GFL"), build_detector("GFL", seed=1), get_losses(method, "GFL"))
    kept = []
    run = distilled_detector.run_teacher

    def watching(*args, **kwargs):
        kept.append(run(*args, **kwargs))
        return kept[-1]

    with mock.patch.object(distilled_detector, "run_teacher", watching):
        run_step(model, make_batch(), iteration=10**6)  # after every schedule
    (step,) = kept
    if method == "pkd":
        assert step.output.features and not step.output.logits and not step.output.box_params
    else:
        assert step.output.features is None and step.output.logits and not step.taps
