"""Detections of GFL and ATSS, against plain Python; tracing."""

import pytest
import torch
from detectron2.export import TracingAdapter
from torchvision.ops import box_iou

from tests.helpers import NUM_CLASSES, make_batch
from tests.modeling.detectors.helpers import CLASSES, build, build_given, random_maps, transposed

NAMES = ("GFL", "ATSS", "DistributionATSS")
IMAGES = [(48, 64), (40, 60)]


def brute_force(detector, maps, image, size):
    """(score, class, box) of the detections, best first."""
    anchors = detector.anchor_generator([x[:, :1] for x in maps[0]])
    logits, deltas, *centerness = transposed(detector, maps)
    found = []
    for level, boxes in enumerate(anchors):
        decoded = detector.box2box_transform.apply_deltas(deltas[level][image], boxes.tensor)
        decoded[:, 0::2] = decoded[:, 0::2].clamp(0, size[1])
        decoded[:, 1::2] = decoded[:, 1::2].clamp(0, size[0])
        of_level = []
        for location in range(len(decoded)):
            for k in range(NUM_CLASSES):
                score = logits[level][image, location, k].sigmoid().item()
                if score > detector.test_score_thresh:
                    of_level.append((score, location, k))
        of_level = sorted(of_level, reverse=True)[: detector.test_topk_candidates]
        for score, location, k in of_level:
            quality = centerness[0][level][image, location, 0].sigmoid().item() if centerness else 1.0
            found.append((score * quality, k, decoded[location]))
    kept = []
    for score, k, box in sorted(found, key=lambda x: -x[0]):
        same = [b for _, other, b in kept if other == k]
        if not same or box_iou(box[None], torch.stack(same)).max() <= detector.test_nms_thresh:
            kept.append((score, k, box))
    return kept[: detector.max_detections_per_image]


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        dict(test_score_thresh=0.3),
        dict(test_score_thresh=0.05, test_topk_candidates=9, test_nms_thresh=0.3),
        dict(test_score_thresh=0.05, test_topk_candidates=40, max_detections_per_image=7),
        dict(test_score_thresh=0.9999),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_detections(name, options):
    maps = random_maps(name)
    copies = [[x.clone() for x in level] for level in maps]
    detector = build_given(name, maps, **options).eval()
    results = detector(make_batch(IMAGES))
    for i, size in enumerate(IMAGES):
        found = results[i]["instances"]
        # An empty box, clipped away, is nothing to Detectron2's postprocessing.
        expected = [x for x in brute_force(detector, maps, i, size) if (x[2][2:] > x[2][:2]).all()]
        assert len(found) == len(expected)
        assert (len(found) > 5) == (options["test_score_thresh"] < 0.9)
        assert found.pred_classes.tolist() == [k for _, k, _ in expected]
        for score, box, (expected_score, _, expected_box) in zip(
            found.scores, found.pred_boxes.tensor, expected, strict=True
        ):
            torch.testing.assert_close(score, torch.tensor(expected_score))
            torch.testing.assert_close(box, expected_box)
    for level, copy in zip(maps, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(level, copy, strict=True))


@torch.no_grad()
def test_centerness_orders_but_does_not_select():
    """A score above the threshold stays, however small its product with centerness."""
    maps = random_maps("ATSS", num_images=1)
    for x in maps[0]:
        x.fill_(-10)
    maps[0][0][0, 1, 2, 3] = 0.0  # a score of 0.5
    maps[2][0].fill_(-9)
    (result,) = build_given("ATSS", maps).eval()(make_batch([(48, 64)]))
    assert result["instances"].pred_classes.tolist() == [1]
    expected = 0.5 * torch.tensor(-9.0).sigmoid()
    torch.testing.assert_close(result["instances"].scores, expected[None])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_map_of_one_cell_is_left_as_it_is(name):
    """There a transposed map is a view of the head's."""
    maps = random_maps(name, sizes=((1, 1), (1, 1), (1, 1)), num_images=1)
    copies = [[x.clone() for x in level] for level in maps]
    build_given(name, maps).eval()(make_batch([(8, 8)], objects=0))
    for level, copy in zip(maps, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(level, copy, strict=True))


def test_defaults():
    for name in NAMES:
        detector = build(name)
        found = [
            detector.test_score_thresh,
            detector.test_topk_candidates,
            detector.test_nms_thresh,
            detector.max_detections_per_image,
        ]
        assert found == [0.05, 1000, 0.6, 100] and detector.input_format == "BGR"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_traced_detections_of_another_image(name, grad, tmp_path):
    """Also after a way through a file, and where tracing sees parameters that require gradients."""
    detector = build(name, test_score_thresh=0.1, test_topk_candidates=20).eval().requires_grad_(grad)
    image, other = ({"image": x["image"].float()} for x in make_batch([(48, 64), (48, 64)], seed=3))

    def infer(model, inputs):
        return [{"instances": x["instances"]} for x in model(inputs)]

    adapter = TracingAdapter(detector, [image], infer)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    traced.save(tmp_path / "model.ts")
    found = adapter.outputs_schema(torch.jit.load(tmp_path / "model.ts")(other["image"]))[0]["instances"]
    with torch.no_grad():
        expected = detector([other])[0]["instances"]
        first = detector([image])[0]["instances"]
    assert len(expected) > 5 and len(expected) != len(first)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
