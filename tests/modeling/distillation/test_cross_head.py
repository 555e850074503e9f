"""The student's taps through the rest of the teacher's head."""

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from torch import nn

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.modeling import get_adapter
from d2kd.modeling.adapters import cross_head
from d2kd.modeling.adapters.taps import record_taps, run_block, split_tower
from d2kd.modeling.backbones import group_norm
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, make_losses, run_step, watched

DEPTH = 3
NORMS = {"none": "", "GN": group_norm(4), "BN": "BN", "FrozenBN": "FrozenBN"}


def build(family, norm, seed=0):
    """A detector with a three-block head whose norms have statistics and weights of their own on each level."""
    detector = build_detector(family, seed=seed, conv_dims=[8] * DEPTH, norm=NORMS[norm]).eval()
    for name, value in detector.head.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand_like(value) + 0.5)
    for module in detector.head.modules():
        if isinstance(module, (nn.GroupNorm, CycleBatchNormList)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return detector


def random_features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, h, w, generator=generator) for h, w in ((6, 8), (3, 4), (2, 2))]


def run_head(detector, features):
    """Its predictions, and all its taps."""
    towers = get_adapter(detector).towers(detector.head)
    indices = {branch: set(range(DEPTH + 1)) for branch in towers}
    with record_taps(towers, indices, features) as taps:
        predictions = detector.head(features)
    return predictions, taps


def cross(teacher, student_taps, teacher_taps, tail, align):
    indices = {branch: DEPTH - tail for branch in ("cls", "box")}
    return cross_head(
        get_adapter(teacher), teacher.head, student_taps, teacher_taps,
        student_indices=indices, teacher_indices=indices, align=align,
    )  # fmt: skip


def assert_close(found, expected, **tolerance):
    assert len(found) == len(expected)
    for found_maps, expected_maps in zip(found, expected, strict=True):
        for a, b in zip(found_maps, expected_maps, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("tail", range(DEPTH + 1))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_teachers_own_taps_give_the_teachers_predictions(family, norm, tail):
    teacher = build(family, norm)
    with torch.no_grad():
        predictions, taps = run_head(teacher, random_features())
        crossed = cross(teacher, taps, taps, tail, align=False)
    assert_close(crossed, predictions, rtol=1e-5, atol=1e-5)
    # Aligning a tap with itself changes it by the order of eps only.
    if tail < DEPTH:
        assert_close(cross(teacher, taps, taps, tail, align=True), predictions, rtol=1e-4, atol=1e-4)
    assert all(m._pos == 0 for m in teacher.modules() if isinstance(m, CycleBatchNormList))


@pytest.mark.parametrize("tail", range(DEPTH + 1))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scale_and_shift_of_the_students_channels_do_not_matter(family, norm, tail):
    student, teacher = build(family, "GN"), build(family, norm, seed=1)
    with torch.no_grad():
        _, student_taps = run_head(student, random_features())
        _, teacher_taps = run_head(teacher, [3 * x + 1 for x in random_features(1)])
        scale, shift = torch.rand(1, 8, 1, 1) * 3 + 0.2, torch.randn(1, 8, 1, 1)
        moved = {key: [x * scale + shift for x in maps] for key, maps in student_taps.items()}
        crossed = cross(teacher, student_taps, teacher_taps, tail, align=True)
        assert_close(cross(teacher, moved, teacher_taps, tail, align=True), crossed, rtol=1e-3, atol=1e-3)
        unaligned = cross(teacher, student_taps, teacher_taps, tail, align=False)
    assert not torch.allclose(unaligned[0][0], crossed[0][0], atol=1e-2)


def test_relu_follows_alignment_except_at_the_heads_input():
    """After alignment a tap may be negative, where the teacher's next convolution never saw anything negative."""
    teacher = build("RetinaNet", "none", seed=1)
    _, student_taps = run_head(build("RetinaNet", "none"), random_features())
    _, teacher_taps = run_head(teacher, random_features(1))
    seen = {}
    for tail, layer in ((DEPTH, 0), (1, 2 * (DEPTH - 1))):
        conv = teacher.head.cls_subnet[layer]
        handle = conv.register_forward_hook(lambda m, x, y, tail=tail: seen.setdefault(tail, x[0]))
        cross(teacher, student_taps, teacher_taps, tail, align=True)
        handle.remove()
    assert seen[DEPTH].min() < 0
    assert seen[1].min() == 0


def test_cycled_norms_are_indexed_by_level():
    tower = nn.Sequential(nn.Conv2d(2, 2, 1), CycleBatchNormList(3, num_features=2), nn.ReLU()).eval()
    for level, norm in enumerate(tower[1]):
        norm.running_mean.fill_(level)
    (block,) = split_tower(tower)
    x = torch.randn(1, 2, 2, 2) + 3
    expected = [tower(x) for _ in range(3)]
    for level in (2, 0, 1):
        assert torch.equal(run_block(block, x, level), expected[level])
    assert tower[1]._pos == 0


@pytest.mark.parametrize("tower, found", [(nn.ModuleList(), "ModuleList"), (nn.Sequential(nn.ReLU()), "ReLU")])
def test_a_tower_that_cannot_be_split_is_refused(tower, found):
    with pytest.raises(TypeError, match=f"found {found}: write an adapter"):
        split_tower(tower)


@pytest.mark.parametrize("depths", [(2, 3), (3, 1), (1, 4)])
def test_heads_of_different_depth_share_a_tail(depths):
    student, teacher = (build_detector("FCOS", seed=s, conv_dims=[8] * d) for s, d in enumerate(depths))
    losses = run_step(distilled(student, teacher, make_losses("crosskd", tail=1)), make_batch())
    assert losses["loss_kd_crosskd_cls"].item() > 0


def test_terms_of_different_tails_live_together():
    pair = [build_detector("FCOS", seed=seed) for seed in (0, 1)]
    losses = {f"tail{t}": BinaryClassificationKD(source="crossed", tail=t) for t in (0, 1, 2)}
    found = run_step(distilled(*pair, losses), make_batch())
    for tail in (0, 1, 2):
        alone = run_step(distilled(*pair, {"one": BinaryClassificationKD(source="crossed", tail=tail)}), make_batch())
        torch.testing.assert_close(found[f"loss_kd_tail{tail}"], alone["loss_kd_one"], rtol=1e-5, atol=0)
    assert len({x.item() for x in found.values()}) == len(found)


@pytest.mark.parametrize("families", [("FCOS", "RetinaNet"), ("RetinaNet", "FCOS")])
def test_a_detector_of_another_family_teaches_through_its_own_anchors(families):
    """Two crossed terms are shared by a student and a teacher whose anchors and box codings differ."""
    student, teacher = (build_detector(family, seed=i) for i, family in enumerate(families))
    model = distilled(student, teacher, "crosskd")
    seen = {}
    for name, loss in model.losses.items():
        loss.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args}))
    batch = make_batch()
    with watched("compute_normalizers") as steps:
        losses = run_step(model, batch)
    ((normalizers, _),) = steps
    assert all(value.isfinite() for value in losses.values())
    assert all(losses[f"loss_kd_{name}"].item() > 0 for name in model.losses)

    gt = [x["instances"] for x in batch]
    maps = [torch.zeros(1, 1, *x.shape[-2:]) for x in seen["crosskd_cls"][0].logits]
    counts = {}
    for who, detector in (("student", student), ("crossed", teacher)):
        labels = torch.stack(detector.label_anchors(detector.anchor_generator(maps), gt)[0])
        counts[who] = ((labels >= 0) & (labels < 3)).sum().item()
    assert counts["student"] != counts["crossed"]
    assert all(normalizers[name].item() == counts["crossed"] > 0 for name in model.losses)
    value = BinaryClassificationKD.forward(model.losses["crosskd_cls"], *seen["crosskd_cls"])
    torch.testing.assert_close(losses["loss_kd_crosskd_cls"], value.sum() / counts["crossed"])
    anchors_per_cell = 2 if families[1] == "RetinaNet" else 1
    assert all(w.shape[1] == anchors_per_cell for w in seen["crosskd_loc"][2])


def test_own_predictions_of_another_family_are_refused():
    losses = {"loc": IoULocalizationKD(region="all_locations")}
    model = distilled(build_detector("FCOS"), build_detector("RetinaNet"), losses)
    with pytest.raises(
        ValueError, match="model.losses.loc .* FCOS student and a RetinaNet teacher .* different anchors"
    ):
        model.load_teacher()
