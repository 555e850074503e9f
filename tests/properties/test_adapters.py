"""Every adapter on heads of any maps: what it reads is the head's, image by image, in every dtype, however large."""

from functools import cache

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2kd.modeling.adapters import ADAPTER_REGISTRY, get_adapter
from d2kd.modeling.adapters.taps import record_taps
from d2kd.modeling.detectors import expected_distances
from tests.helpers import FAMILIES, STRIDES, build_detector
from tests.modeling.detectors.helpers import CLASSES, build
from tests.properties.scenes import DTYPES, QUICK, SCALES, SEEDS

NAMES = [*FAMILIES, *(name for name in CLASSES if name not in FAMILIES)]
EVERY_DETECTOR = pytest.mark.parametrize("name", NAMES)
SIZES = st.tuples(*[st.tuples(st.integers(1, 4), st.integers(1, 4))] * 3)


@cache
def detector_of(name: str) -> DenseDetector:
    return (build_detector(name) if name in FAMILIES else build(name)).eval()


@cache
def channels_of(name: str) -> list[int]:
    """Channels of each kind of prediction."""
    detector = detector_of(name)
    with torch.no_grad():
        return [maps[0].shape[1] for maps in detector.head([torch.zeros(1, 8, 2, 2)] * 3)]


def draw(seed: int, *size: int, scale: float = 1.0) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return values if scale < 10 else (4 * values).clamp(-1, 1) * scale


def made_up(name: str, sizes, *, seed: int, images: int, dtype=torch.float32, scale: float = 1.0):
    """Predictions as its head returns them, and the anchors of these maps."""
    predictions = [
        [draw(seed + 10 * kind + i, images, c, h, w, scale=scale).to(dtype) for i, (h, w) in enumerate(sizes)]
        for kind, c in enumerate(channels_of(name))
    ]
    return predictions, detector_of(name).anchor_generator(predictions[0])


def maps_of(output) -> list[Tensor]:
    return [*output.logits, *output.box_params, *(output.centerness or ()), *output.boxes]


def test_every_adapter_is_looked_at():
    assert {type(get_adapter(detector_of(name))) for name in NAMES} == {adapter for _, adapter in ADAPTER_REGISTRY}


@EVERY_DETECTOR
def test_maps_are_views_and_boxes_finite(name):
    """In the head's own layout and dtype; decoded in fp32."""
    detector = detector_of(name)
    adapter, spec = get_adapter(detector), get_adapter(detector).describe(detector)

    @QUICK
    @given(SIZES, SEEDS, st.integers(1, 3), st.sampled_from(DTYPES), SCALES)
    def check(sizes, seed, images, dtype, scale):
        predictions, anchors = made_up(name, sizes, seed=seed, images=images, dtype=dtype, scale=scale)
        output = adapter.dense_output(detector, predictions, anchors)
        assert output.rectified == (name == "FCOS")
        assert output.sizes == list(sizes) and (output.centerness is not None) == spec.centerness
        levels = zip(output.logits, output.box_params, output.boxes, output.anchors, *predictions[:2], strict=True)
        for (h, w), (logits, params, boxes, grid, raw, raw_boxes) in zip(sizes, levels, strict=True):
            cells = grid.shape[0]
            assert logits.shape == (images, cells, spec.num_classes, h, w)
            assert params.shape == (images, cells, 4, *([spec.bins] if spec.bins else []), h, w)
            assert boxes.shape == (images, cells, h, w, 4) and boxes.dtype == torch.float32
            assert boxes.isfinite().all()
            assert (logits.data_ptr(), params.data_ptr()) == (raw.data_ptr(), raw_boxes.data_ptr())
        flat = [boxes.tensor.view(h, w, -1, 4).permute(2, 0, 1, 3) for boxes, (h, w) in zip(anchors, sizes)]
        assert all(torch.equal(a, b) for a, b in zip(output.anchors, flat, strict=True))

    check()


@EVERY_DETECTOR
def test_images_and_levels_are_read_by_themselves(name):
    detector = detector_of(name)
    adapter = get_adapter(detector)

    @QUICK
    @given(SIZES, SEEDS, st.integers(1, 3), SCALES)
    def check(sizes, seed, images, scale):
        predictions, anchors = made_up(name, sizes, seed=seed, images=images, scale=scale)
        whole = maps_of(adapter.dense_output(detector, predictions, anchors))
        order = list(range(images))[::-1]
        turned = adapter.dense_output(detector, [[x[order] for x in maps] for maps in predictions], anchors)
        for found, expected in zip(maps_of(turned), whole, strict=True):
            torch.testing.assert_close(found, expected[order])
        # The last two levels alone, and of each its upper left cell.
        output = adapter.dense_output(detector, predictions, anchors)
        some = output.select([1, 2]).crop([(1, 1)] * 2)
        assert some.sizes == [(1, 1)] * 2
        for found, expected in zip(some.boxes, output.boxes[1:], strict=True):
            torch.testing.assert_close(found, expected[:, :, :1, :1])

    check()


@EVERY_DETECTOR
def test_towers_and_predictors_are_the_head(name):
    """Of features of any size: what its taps give is what the head returns."""
    detector = detector_of(name)
    adapter = get_adapter(detector)
    towers = adapter.towers(detector.head)

    @settings(QUICK, max_examples=10)
    @given(SIZES, SEEDS, st.integers(1, 3))
    def check(sizes, seed, images):
        features = [draw(seed + i, images, 8, h, w) for i, (h, w) in enumerate(sizes)]
        ends = {branch: {0, len(blocks)} for branch, blocks in towers.items()}
        with torch.no_grad(), record_taps(towers, ends, features) as taps:
            predictions = detector.head(features)
        with torch.no_grad():
            for level in range(3):
                assert all(taps[branch, 0][level] is features[level] for branch in towers)
                last = {branch: taps[branch, len(blocks)][level] for branch, blocks in towers.items()}
                found = adapter.predict(detector.head, level, last)
                for a, maps in zip(found, predictions, strict=True):
                    torch.testing.assert_close(a, maps[level])

    check()


@EVERY_DETECTOR
def test_labels_lie_where_the_anchors_do(name):
    """Of each image by itself, whatever its objects; without any, all is background or ignored."""
    detector = detector_of(name)
    adapter = get_adapter(detector)

    @QUICK
    @given(st.integers(1, 4), st.integers(1, 4), SEEDS, st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def check(rows, columns, seed, counts):
        height, width = 16 * rows, 16 * columns
        sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
        generator = torch.Generator().manual_seed(seed)
        gt = []
        for count in counts:
            corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
            boxes = Boxes(torch.cat([corners, corners + 6 + 20 * torch.rand(count, 2, generator=generator)], dim=1))
            classes = torch.randint(0, 3, (count,), generator=generator)
            # Some are smaller than the canvas, so that there is padding.
            own = (height, width) if count % 2 else (max(height - 20, 1), max(width - 20, 1))
            gt.append(Instances(own, gt_boxes=boxes, gt_classes=classes))
        anchors = detector.anchor_generator([torch.zeros(1, 1, h, w) for h, w in sizes])
        labelled = detector.label_anchors(anchors, gt)
        found = adapter.assignment(detector, labelled, gt, sizes)
        assert found.num_classes == detector.num_classes and found.num_labelled == len(gt)
        valid = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in found.valid], dim=1)
        takes_part = getattr(detector, "valid_anchors", None)  # Detectron2's own leave nothing out
        assert torch.equal(valid, takes_part(anchors, gt) if takes_part else torch.ones_like(valid))
        for n, count in enumerate(counts):
            flat = torch.cat([x[n].permute(1, 2, 0).flatten() for x in found.labels])
            assert torch.equal(flat, labelled[0][n].long())
            assert count or not any(x[n].any() for x in found.positives)
            alone = adapter.assignment(detector, detector.label_anchors(anchors, gt[n : n + 1]), gt[n : n + 1], sizes)
            for one, of_all in ((alone.labels, found.labels), (alone.valid, found.valid)):
                assert all(torch.equal(a[0], b[n]) for a, b in zip(one, of_all, strict=True))
            assert alone.num_positives[0] == found.num_positives[n] == sum(x[n].sum() for x in found.positives)

    check()


@QUICK
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(-4, 3), SEEDS, st.sampled_from(DTYPES), SCALES)
def test_expected_distances(shape, dim, seed, dtype, scale):
    dim = max(min(dim, len(shape) - 1), -len(shape))
    logits = draw(seed, *shape, scale=scale).to(dtype).requires_grad_()
    found = expected_distances(logits, dim=dim)
    assert found.isfinite().all() and (found >= 0).all() and (found <= shape[dim] - 1 + 1e-4).all()
    torch.testing.assert_close(expected_distances(logits.detach(), dim=dim), found.detach())
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad.isfinite().all() and grad.dtype == dtype
    if scale == 1:
        exact = logits.detach().double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: expected_distances(x, dim=dim), exact, fast_mode=True)
