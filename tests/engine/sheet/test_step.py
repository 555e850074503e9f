"""What is read off a training step: regions, the gap, the gradient."""

import logging

import pytest
import torch

from d2kd.engine.sheet import look_at_step, make_sheet
from d2kd.modeling.distillation.health import FIRST_SHARE
from tests.helpers import (
    FAMILIES,
    LEVELS,
    STRIDES,
    build_detector,
    distilled,
    make_batch,
    make_losses,
    preset,
    run_step,
    watched,
)

SIZE = (64, 96)  # no padding


def model_of(family="GFL", losses="ld", teacher=None, **kwargs):
    model = distilled(
        build_detector(family, **kwargs), teacher or build_detector(family, seed=1, width=8), losses=losses
    )
    model.load_teacher()
    return model.train()


def item_of(size=SIZE, objects=2):
    return make_batch([size], objects)[0]


def still(model):
    """A copy in training mode whose norms use their running statistics."""
    twin = model.twin().train()
    for child in twin.student.children():
        child.eval()
    return twin


def map_of(view, title):
    (found,) = [x for x in view.maps if x.title.startswith(title)]
    return found


def test_it_logs_no_gradient_shares(caplog):
    """Where training logs its own."""
    caplog.set_level(logging.INFO)
    model = model_of()
    look_at_step(model, item_of(), FIRST_SHARE)
    assert "Gradient at the student's FPN outputs" not in caplog.text
    run_step(model, [item_of()], iteration=FIRST_SHARE)
    assert "Gradient at the student's FPN outputs" in caplog.text


@pytest.mark.parametrize("losses", ["ld", "bckd", "crosskd", "tid"])
def test_regions_are_those_of_the_step(losses):
    model = model_of(losses=preset("tid", "GFL") if losses == "tid" else losses)
    with watched("make_regions") as made:
        view = look_at_step(model, item_of(), 10**6)
    (regions,) = made
    drawn = set()
    for name, each in regions.items():
        for spec, levels in zip(model.losses[name].regions, each, strict=True):
            expected = [x[0].amax(0) for x in levels]
            title = (spec.member or spec.function).replace("_", " ")
            same = [
                x
                for x in view.maps
                if x.title == title and all(torch.equal(a.values, b) for a, b in zip(x.levels, expected, strict=True))
            ]
            varies = len(torch.cat([x.flatten() for x in expected]).unique()) > 1
            assert len(same) == varies, (name, title)
            if varies:
                assert name in same[0].subtitle
                drawn.add(title)
            else:
                assert any(name in remark for remark in view.remarks)
    assert {x.title for x in view.maps[:-2]} == drawn != set()
    assert [x.title for x in view.maps[-2:]] == ["|pₜ − pₛ|", "gradient"]
    assert view.levels == [f"{level.upper()}\nstride {stride}" for level, stride in zip(LEVELS, STRIDES)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gap_is_the_largest_difference_of_a_cell(family):
    teacher = build_detector(family, seed=1, width=8)
    model, item = model_of(family, "bckd", teacher), item_of()
    gap = map_of(look_at_step(model, item, 0), "|pₜ")
    logits = []
    for detector in (still(model).student, teacher.eval()):
        with torch.no_grad():
            maps = detector.backbone(detector.preprocess_image([item]).tensor)
            logits.append(detector.head([maps[name] for name in LEVELS])[0])
    for cells, ours, theirs, stride in zip(gap.levels, *logits, STRIDES, strict=True):
        assert cells.values.shape == (SIZE[0] // stride, SIZE[1] // stride) and cells.stride == stride
        for y in range(cells.values.shape[0]):
            for x in range(cells.values.shape[1]):
                channels = (ours[0, :, y, x].sigmoid() - theirs[0, :, y, x].sigmoid()).abs()
                assert cells.values[y, x].item() == pytest.approx(channels.max().item(), abs=1e-6)


@pytest.mark.parametrize("family, losses", [("GFL", "ld"), ("GFL", "crosskd"), ("FCOS", "bckd"), ("RetinaNet", "tid")])
def test_the_gradient_is_autograds(family, losses):
    model, item = model_of(family, preset("tid", family) if losses == "tid" else losses), item_of()
    found = map_of(look_at_step(model, item, 10**6), "gradient")
    twin, features = still(model), []
    twin.student.head.register_forward_pre_hook(lambda _, args: features.extend(args[0]))
    losses = run_step(twin, [item], 10**6)
    for x in features:
        x.retain_grad()
    sum(x for name, x in losses.items() if name.startswith("loss_kd_")).backward()
    for cells, x in zip(found.levels, features, strict=True):
        expected = x.grad[0].square().sum(0).sqrt()
        torch.testing.assert_close(cells.values, expected, rtol=1e-5, atol=1e-9)
    assert sum(x.values.sum() for x in found.levels) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_model_changes(family):
    model, item = model_of(family, "crosskd"), item_of()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attributes, random = set(vars(model.student)), torch.get_rng_state()
    look_at_step(model, item, 0)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert set(vars(model.student)) == attributes and torch.equal(torch.get_rng_state(), random)
    assert all(x.grad is None for x in model.parameters())


def test_an_image_without_objects_and_one_without_labels():
    model, item = model_of(), item_of(objects=0)
    views = [look_at_step(model, item, 0)]
    del item["instances"]
    views.append(look_at_step(model, item, 0))
    for view in views:
        assert [x.title for x in view.maps] == ["teacher quality", "|pₜ − pₛ|", "gradient"][-len(view.maps) :]
        (remark,) = [x for x in view.remarks if x.startswith("Empty on this image: ")]
        assert "main (ld_main)" in remark and "valuable localization (ld_vlr)" in remark


def test_cells_beyond_the_image_are_left_out():
    view = look_at_step(model_of("FCOS", "bckd"), item_of((40, 50)), 0)
    for x in view.maps:
        # Centres at 4, 12, ...; 8, 24, ...; 16, 48.
        assert [tuple(cells.values.shape) for cells in x.levels] == [(5, 6), (2, 3), (1, 2)]
        assert [cells.first for cells in x.levels] == [(4.0, 4.0), (8.0, 8.0), (16.0, 16.0)]


def test_detectors_of_other_anchors_are_compared_cell_by_cell():
    teacher = build_detector("RetinaNet", seed=1, width=8, sizes=((6, 10), (20, 28), (40, 60)))
    model = model_of("RetinaNet", "crosskd", teacher)
    assert not model.overlap.same_anchors
    gap = map_of(look_at_step(model, item_of(), 0), "|pₜ")
    assert all((x.values >= 0).all() and (x.values <= 1).all() for x in gap.levels)
    assert max(x.values.max() for x in gap.levels) > 0


def test_losses_of_features_alone_have_a_gap_and_a_frozen_backbone_no_gradient():
    model = model_of(losses=preset("pkd", "GFL"))
    assert [x.title for x in look_at_step(model, item_of(), 0).maps] == ["|pₜ − pₛ|", "gradient"]
    model = model_of(losses=make_losses("bckd"))
    model.backbone.requires_grad_(False)
    view = look_at_step(model, item_of(), 0)
    assert [x.title for x in view.maps] == ["gap", "|pₜ − pₛ|"]
    assert any("need no gradient" in remark for remark in view.remarks)


@pytest.mark.parametrize("family, losses", [("RetinaNet", "crosskd"), ("GFL", "ld")])
def test_a_model_on_a_device_is_seen_as_on_the_host(family, losses, device):
    model, item = model_of(family, losses), item_of()
    on_host = look_at_step(model, item, 0)
    model.to(device.device)
    on_device = look_at_step(model, item, 0)
    for one, other in zip(on_host.maps, on_device.maps, strict=True):
        for a, b in zip(one.levels, other.levels, strict=True):
            torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-6)
    sheet = make_sheet(model, item, on_device, names=None, title="title")
    assert sheet.width == 1120
