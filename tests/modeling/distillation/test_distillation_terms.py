"""Where distillation terms pull, what they are divided by, and when they are off."""

import re

import pytest
import torch
from detectron2.utils.events import EventStorage

from d2kd.losses import BinaryClassificationKD, DistillationLoss, IoULocalizationKD
from tests.helpers import (
    FAMILIES,
    build_detector,
    distilled,
    gradients,
    make_batch,
    make_losses,
    reached,
    run_step,
    watched,
)

LEARNERS = ("bckd", "crosskd")


def watch_terms(model):
    """(source, teacher, region) that each loss of ``model`` is called with, by name."""
    seen = {}
    for name, loss in model.losses.items():
        loss.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args}))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_weights_give_zero_loss_and_zero_gradient(family):
    # FrozenBN: the student in training mode computes what the teacher does in eval mode.
    pair = [build_detector(family, backbone_norm="FrozenBN") for _ in range(2)]
    losses = {
        f"{kernel}_{i}": loss
        for i, region in enumerate(("all_locations", "teacher_quality", "positives", "gap"))
        for kernel, loss in {
            "cls": BinaryClassificationKD(region=region),
            "giou": IoULocalizationKD(region=region, iou_type="giou"),
            "iou": IoULocalizationKD(region=region, iou_type="iou"),
            "log": IoULocalizationKD(region=region, iou_type="neg_log_iou"),
        }.items()
    }
    model = distilled(*pair, losses)
    terms = {k: v for k, v in run_step(model, make_batch()).items() if k.startswith("loss_kd_")}
    assert len(terms) == 16
    for name, term in terms.items():
        assert term.item() == 0, name
        assert term.requires_grad and not reached(gradients(model, term)), name


def towers_reached(names):
    """Towers and predictors that gradients reach: {"cls_subnet.0", "cls_score", ...} without the backbone."""
    assert any(n.startswith("backbone.fpn_lateral3.") for n in names)
    assert any(n.startswith("backbone.bottom_up.stem.") for n in names)
    heads = {n.removeprefix("head.") for n in names if not n.startswith("backbone.")}
    # GFL and ATSS scale each level's boxes.
    return {n.rsplit(".", 1)[0] for n in heads if not re.fullmatch(r"scales\.\d\.scale", n)}


@pytest.mark.parametrize("family", FAMILIES)
def test_student_terms_train_their_own_branch_and_nothing_of_the_teacher(family):
    student, teacher = build_detector(family), build_detector(family, seed=1)
    model = distilled(student, teacher, "bckd")
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses = run_step(model, make_batch())
    found = {name: reached(gradients(model, losses[f"loss_kd_{name}"])) for name in model.losses}
    assert towers_reached(found["bckd_cls"]) == {"cls_subnet.0", "cls_subnet.2", "cls_score"}
    assert towers_reached(found["bckd_loc"]) == {"bbox_subnet.0", "bbox_subnet.2", "bbox_pred"}
    assert_untouched(teacher, before, losses)


@pytest.mark.parametrize("tail", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_crossed_terms_train_nothing_past_the_tap(family, tail):
    student, teacher = (build_detector(family, seed=seed, conv_dims=(8, 8, 8)) for seed in (0, 1))
    model = distilled(student, teacher, make_losses("crosskd", tail=tail))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses = run_step(model, make_batch())
    for name, tower in (("crosskd_cls", "cls_subnet"), ("crosskd_loc", "bbox_subnet")):
        found = reached(gradients(model, losses[f"loss_kd_{name}"]))
        assert towers_reached(found) == {f"{tower}.{2 * i}" for i in range(3 - tail)}
    assert_untouched(teacher, before, losses)


def assert_untouched(teacher, before, losses):
    sum(losses.values()).backward()
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_teacher_buffers_and_counters_stay_with_batch_norm_heads():
    student, teacher = (build_detector("RetinaNet", seed=seed, norm="BN") for seed in (0, 1))
    model = distilled(student, teacher, "crosskd")
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    for step in range(2):
        assert_untouched(teacher, before, run_step(model, make_batch()))
        for detector in (student, teacher):
            counters = [m._pos for m in detector.modules() if type(m).__name__ == "CycleBatchNormList"]
            assert counters == [0, 0, 0, 0]
        tracked = [v for k, v in student.state_dict().items() if k.endswith("num_batches_tracked")]
        assert len(tracked) > 12
        assert all(count == step + 1 for count in tracked)  # the student's layers ran once a step


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_terms_are_weighted_and_normalised_as_they_say(family, method):
    # normaliser -> the divisor as a function of the assignment
    cases = {
        "positives": lambda labels: max(sum(p.sum().item() for p in labels.positives), 1),
        "local_positives": lambda labels: sum(max(n, 1) for n in labels.num_positives.tolist()),
    }
    student, teacher = build_detector(family), build_detector(family, seed=1)
    losses = {
        f"{name}_{normalizer}": loss
        for normalizer in cases
        for name, loss in make_losses(method, normalizer=normalizer, weight=3.0).items()
    }
    model = distilled(student, teacher, losses)
    seen = watch_terms(model)
    with watched("train_student") as runs:
        found = run_step(model, make_batch(objects=(0, 2)))
    for name, loss in model.losses.items():
        divisor = cases[loss.regions[0].normalizer](runs[0].assignment)
        value = type(loss).forward(loss, *seen[name])
        torch.testing.assert_close(found[f"loss_kd_{name}"], 3.0 * value.sum() / divisor, rtol=1e-5, atol=0)
    divisors = {case(runs[0].assignment) for case in cases.values()}
    assert len(divisors) == len(cases)  # the cases could be told apart


def test_levels_without_positives_can_be_skipped():
    student, teacher = build_detector("FCOS"), build_detector("FCOS", seed=1)
    losses = {"all": BinaryClassificationKD(), "skip": BinaryClassificationKD(skip_empty_levels=True)}
    model = distilled(student, teacher, losses)
    seen = watch_terms(model)
    with watched("train_student") as runs:
        run_step(model, make_batch())
    has_positives = [p.any().item() for p in runs[0].assignment.positives]
    assert has_positives == [True, False, False]  # boxes of less than 28 pixels
    assert [w.any().item() for w in seen["skip"][2]] == has_positives
    assert all(w.all() for w in seen["all"][2])


def test_ignored_anchors_are_left_out():
    student, teacher = build_detector("RetinaNet"), build_detector("RetinaNet", seed=1)
    regions = ("all_locations", "teacher_quality", "gap", "positives")
    model = distilled(student, teacher, {r: BinaryClassificationKD(region=r) for r in regions})
    seen = watch_terms(model)
    with watched("train_student") as runs:
        run_step(model, make_batch(seed=2))
    ignored = [labels == -1 for labels in runs[0].assignment.labels]
    assert sum(x.sum() for x in ignored) > 0
    for region in regions:
        for weight, out in zip(seen[region][2], ignored, strict=True):
            assert not weight[out].any(), region
            assert not weight.requires_grad
            if region != "positives":
                assert (weight[~out] > 0).all()


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_term_without_weight_runs_nothing_and_keeps_its_key(family, method, monkeypatch):
    student, teacher = build_detector(family), build_detector(family, seed=1)
    model = distilled(student, teacher, method)
    keys = list(run_step(model, make_batch()))
    off, on = model.losses

    def refuse(*args, **kwargs):
        raise AssertionError("a term of weight 0 ran")

    monkeypatch.setattr(model.losses[off], "level_loss", refuse)
    model.losses[off].weight = 0
    losses = run_step(model, make_batch())
    assert list(losses) == keys
    assert losses[f"loss_kd_{off}"].item() == 0
    assert losses[f"loss_kd_{on}"].item() > 0
    # Without any term that is on, the teacher does not run either.
    model.losses[on].weight = 0
    monkeypatch.setattr(model.teacher, "run", refuse)
    assert list(run_step(model, make_batch())) == keys


class Learned(DistillationLoss):
    """A term with a parameter of its own."""

    task = "cls"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def level_loss(self, source, teacher, level, region):
        return self.scale * source.logits[level].sum()


def test_a_term_that_is_off_stays_connected_to_its_own_parameters():
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), {"learned": Learned(weight=0)})
    term = run_step(model, make_batch())["loss_kd_learned"]
    assert term.item() == 0
    grads = gradients(model, term)
    assert grads["distillation.losses.learned.scale"].item() == 0
    assert all(grad is None for name, grad in grads.items() if not name.startswith("distillation."))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_term_that_is_not_finite_stops_training_and_is_named(who):
    pair = dict(student=build_detector("FCOS"), teacher=build_detector("FCOS", seed=1))
    model = distilled(**pair, losses="bckd")
    model.load_teacher()  # which refuses such weights
    pair[who].head.cls_score.bias.data[1] = float("nan")
    with pytest.raises(FloatingPointError) as error:
        run_step(model, make_batch())
    named = str(error.value).split("Not finite: ")[1].split(". ")[0].split(", ")
    # The box term's region reads class scores of both.
    kd = ["loss_kd_bckd_cls", "loss_kd_bckd_loc"]
    assert named == (["loss_fcos_cls", *kd] if who == "student" else kd)


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_monitors_go_to_the_event_storage(family, method):
    student, teacher = build_detector(family), build_detector(family, seed=1)
    model = distilled(student, teacher, method)
    seen = watch_terms(model)
    with watched("train_student") as runs, EventStorage(0) as storage:
        model(make_batch())
        logged = {name: value for name, (value, _) in storage.latest().items()}
    for name in model.losses:
        weights = sum(w.sum().item() for w in seen[name][2])
        assert logged[f"kd/{name}_locations"] == pytest.approx(weights / 2, rel=1e-5)
    name = next(iter(model.losses))
    teacher_logits = seen[name][1].logits
    student_logits = runs[0].output.logits
    gaps = []
    for level, labels in enumerate(runs[0].assignment.labels):
        for n, a, y, x in ((labels >= 0) & (labels < 3)).nonzero().tolist():
            k = labels[n, a, y, x]
            ours, theirs = (z[level][n, a, k, y, x].sigmoid() for z in (student_logits, teacher_logits))
            gaps.append((ours - theirs).abs())
    assert len(gaps) > 2
    assert logged["kd/gap_at_positives"] == pytest.approx(torch.stack(gaps).mean().item(), rel=1e-5)
