"""Losses of several regions, and weights that change while training, inside a step."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import LinearParamScheduler, MultiStepParamScheduler

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD, RegionSpec
from d2kd.regions import REGION_REGISTRY
from tests.helpers import build_detector, distilled, make_batch, run_step, watched


class ManyRegions(BinaryClassificationKD):
    """The same kernel in two regions, each with its own normaliser."""

    def __init__(self, normalizers, **kwargs):
        super().__init__(**kwargs)
        regions = ("all_locations", "teacher_quality")
        self.regions = tuple(
            RegionSpec.of("ManyRegions", region=region, normalizer=normalizer, label=region)
            for region, normalizer in zip(regions, normalizers, strict=True)
        )

    def level_loss(self, source, teacher, level, region):
        return torch.stack([super(ManyRegions, self).level_loss(source, teacher, level, x) for x in region])


def pair():
    return build_detector("FCOS"), build_detector("FCOS", seed=1)


@pytest.mark.parametrize(
    "normalizers", [("positives", "locations"), ("positives", "level_mean"), ("level_locations", "images")]
)
def test_each_region_of_a_loss_has_its_own_normaliser(normalizers):
    losses = {
        "both": ManyRegions(normalizers, weight=3.0),
        "first": BinaryClassificationKD(region="all_locations", normalizer=normalizers[0], weight=3.0),
        "second": BinaryClassificationKD(region="teacher_quality", normalizer=normalizers[1], weight=3.0),
    }
    with EventStorage() as storage:
        found = distilled(*pair(), losses)(make_batch())
        logged = {name: value for name, (value, _) in storage.latest().items()}
    expected = found["loss_kd_first"] + found["loss_kd_second"]
    torch.testing.assert_close(found["loss_kd_both"], expected, rtol=1e-5, atol=0)
    assert found["loss_kd_first"] > 0 and found["loss_kd_second"] > 0
    for label, alone in (("all_locations", "first"), ("teacher_quality", "second")):
        assert logged[f"kd/both_{label}_locations"] == logged[f"kd/{alone}_locations"]


def test_the_regions_of_one_function_are_made_in_one_call():
    calls = []

    @REGION_REGISTRY.register()
    def counted(source, teacher, assignment):
        calls.append(len(source.logits))
        return {"left": [x.float() for x in assignment.valid], "right": [x.float() * 0 for x in assignment.valid]}

    try:
        losses = {name: BinaryClassificationKD(region=f"counted.{name}") for name in ("left", "right")}
        model = distilled(*pair(), losses)
        calls.clear()  # those of looking at the options
        found = run_step(model, make_batch())
    finally:
        del REGION_REGISTRY._obj_map["counted"]
    assert calls == [3]
    assert found["loss_kd_left"] > 0 and found["loss_kd_right"].item() == 0


def test_a_region_that_reads_predictions_reads_those_of_its_loss():
    """Crossed outputs of different tails are different sources."""
    losses = {f"tail{tail}": BinaryClassificationKD(source="crossed", tail=tail, region="gap") for tail in (0, 1, 2)}
    together = run_step(distilled(*pair(), losses), make_batch())
    for name, loss in losses.items():
        alone = run_step(distilled(*pair(), {name: loss}), make_batch())
        assert together[f"loss_kd_{name}"].item() == alone[f"loss_kd_{name}"].item() > 0


def scheduled(schedule, **kwargs):
    return BinaryClassificationKD(schedule=schedule, schedule_iters=10, **kwargs)


def test_a_weight_follows_its_schedule_by_iteration_and_is_logged():
    model = distilled(*pair(), {"warm": scheduled(LinearParamScheduler(0, 1)), "flat": IoULocalizationKD()})
    for iteration, factor in ((0, 0), (4, 0.4), (10, 1), (5000, 1)):
        with EventStorage(iteration) as storage:
            term = model(make_batch())["loss_kd_warm"]
            assert storage.latest()["kd/warm_weight"][0] == pytest.approx(factor)
            assert "kd/flat_weight" not in storage.latest()
        if factor == 1:
            full = term.item()
            assert full > 0
        else:
            assert (term.item() == 0) == (factor == 0)
        at = {0: 0, 4: 0.4}.get(iteration)
        if at is not None:
            model.losses["warm"].schedule = None
            assert term.item() == pytest.approx(at * run_step(model, make_batch())["loss_kd_warm"].item(), rel=1e-5)
            model.losses["warm"].schedule = LinearParamScheduler(0, 1)


def test_where_a_schedule_is_zero_nothing_of_the_loss_runs(monkeypatch):
    stop = MultiStepParamScheduler([1.0, 0.0], num_updates=10, milestones=[5])
    model = distilled(*pair(), {"stops": scheduled(stop)})
    keys = list(run_step(model, make_batch(), iteration=4))

    def refuse(*args, **kwargs):
        raise AssertionError("the teacher ran for a loss that is off")

    monkeypatch.setattr(model.teacher, "run", refuse)
    after = run_step(model, make_batch(), iteration=5)
    assert list(after) == keys and after["loss_kd_stops"].item() == 0


def test_a_loss_that_begins_at_zero_has_its_teacher_from_the_first_step():
    """A teacher that cannot be loaded, or a pair that does not fit, must not be met in the middle of a run."""
    student, teacher = build_detector("FCOS"), build_detector("FCOS", num_classes=2)
    model = distilled(student, teacher, {"warm": scheduled(LinearParamScheduler(0, 1))})
    with pytest.raises(ValueError, match="3 classes and the teacher 2"):
        run_step(model, make_batch(), iteration=0)


def test_the_first_step_after_a_resume_has_the_weight_of_its_iteration(tmp_path):
    def model():
        return distilled(*pair(), {"warm": scheduled(LinearParamScheduler(0, 1))})

    first = model()
    run_step(first, make_batch(), iteration=6)
    DetectionCheckpointer(first, str(tmp_path)).save("model", iteration=6)
    expected = run_step(first, make_batch(), iteration=7)["loss_kd_warm"]
    resumed = model()
    assert DetectionCheckpointer(resumed, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 6
    found = run_step(resumed, make_batch(), iteration=7)["loss_kd_warm"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert resumed.losses["warm"].scheduled_weight == pytest.approx(0.7)


def test_crossed_losses_of_the_same_anchors_take_the_students_assignment():
    model = distilled(*pair(), {"crossed": BinaryClassificationKD(source="crossed")})
    with watched("train_student") as steps, watched("crossed_assignment") as crossed:
        run_step(model, make_batch())
    assert crossed[0] is steps[0].assignment and crossed[0].num_positives.sum() > 0
