"""CrossKD end to end against the numbers of its authors' code, from FPN features to gradients."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from d2kd.methods import get_losses
from d2kd.modeling import ADAPTER_REGISTRY, DistilledDetector
from d2kd.modeling.adapters import FCOSAdapter
from d2kd.modeling.layers import group_norm
from tests.helpers import PIXELS, run_step

STRIDES = [8, 16, 32, 64, 128]
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
FILES = {"RetinaNet": "06_crosskd_retinanet.npz", "FCOS": "06_crosskd_fcosnorm.npz"}
SPECS = dict(input_shape=[ShapeSpec(channels=8)] * 5, num_classes=5, conv_dims=[8] * 4)


class GivenFeatures(Backbone):
    """Returns the golden FPN features whatever the image."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def output_shape(self):
        return {n: ShapeSpec(channels=8, stride=s) for n, s in zip(LEVELS, STRIDES, strict=True)}

    def forward(self, images):
        return dict(zip(LEVELS, self.features, strict=True))


class ScaledFCOSHead(FCOSHead):
    """The paper's FCOS multiplies a level's distances by a learned scale; Detectron2's does not."""

    def __init__(self) -> None:
        super().__init__(norm=group_norm(4), **SPECS)
        self.scales = nn.Parameter(torch.ones(5))

    def forward(self, features):
        logits, deltas, centerness = super().forward(features)
        return logits, [x * scale for x, scale in zip(deltas, self.scales, strict=True)], centerness


class ScaledFCOS(FCOS):
    pass


@ADAPTER_REGISTRY.register()
class ScaledFCOSAdapter(FCOSAdapter):
    detector_class = ScaledFCOS

    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        logits, deltas, centerness = super().predict(head, level, towers_out)
        return logits, deltas * head.scales[level], centerness


def golden(family):
    arrays = np.load(Path(__file__).parents[1] / "golden" / FILES[family])
    return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind != "U"}


def to_maps(flat, level_hw):
    """(N, R, C) -> per level (N, C, H, W)."""
    parts = flat.split([int(h * w) for h, w in level_hw], dim=1)
    return [x.unflatten(1, tuple(hw.tolist())).permute(0, 3, 1, 2) for x, hw in zip(parts, level_hw, strict=True)]


def to_flat(maps):
    """Per level (N, A, C, H, W) -> (N, R, C), R over (level, H, W, A)."""
    return torch.cat([x.permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps], dim=1)


def load_head(head, arrays, who):
    """The exported weights under Detectron2's names, with mmdet's anchor slots put in Detectron2's order."""
    weights = {k.removeprefix(f"in/{who}/"): v for k, v in arrays.items() if k.startswith(f"in/{who}/")}
    for subnet, name in ((head.cls_subnet, "cls_convs"), (head.bbox_subnet, "reg_convs")):
        convs, norms = ([m for m in subnet if isinstance(m, t)] for t in (nn.Conv2d, nn.GroupNorm))
        for i, conv in enumerate(convs):
            conv.weight.data = weights.pop(f"{name}.{i}.conv.weight")
            conv.bias.data = torch.zeros(8) if norms else weights.pop(f"{name}.{i}.conv.bias")
        for i, norm in enumerate(norms):
            norm.weight.data, norm.bias.data = (weights.pop(f"{name}.{i}.gn.{x}") for x in ("weight", "bias"))
    predictors = {"cls_score": "conv_cls", "bbox_pred": "conv_reg", "ctrness": "conv_centerness"}
    if not isinstance(head, FCOSHead):
        predictors = {"cls_score": "retina_cls", "bbox_pred": "retina_reg"}
    for ours, theirs in predictors.items():
        for x in ("weight", "bias"):
            value = weights.pop(f"{theirs}.{x}")
            if not isinstance(head, FCOSHead):
                value = value.unflatten(0, (9, -1))[arrays["anchor_perm_d2_from_mmdet"]].flatten(0, 1)
            assert getattr(getattr(head, ours), x).shape == value.shape
            getattr(head, ours).get_parameter(x).data = value
    if isinstance(head, FCOSHead):
        head.scales.data = torch.stack([weights.pop(f"scales.{level}.scale") for level in range(5)])
    assert not weights  # all that was exported is used


def build(family, arrays, who, features):
    common = dict(backbone=GivenFeatures(features), head_in_features=LEVELS, num_classes=5, **PIXELS)
    if family == "FCOS":
        detector = ScaledFCOS(head=ScaledFCOSHead(), **common)
    else:
        detector = RetinaNet(
            head=RetinaNetHead(num_anchors=9, **SPECS),
            anchor_generator=DefaultAnchorGenerator(
                sizes=[[4 * s * 2 ** (i / 3) for i in range(3)] for s in STRIDES],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=STRIDES,
                offset=0.0,
            ),
            box2box_transform=Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
            anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
            **common,
        )
    load_head(detector.head, arrays, who)
    return detector


class Run:
    """One step of a DistilledDetector on the golden scene, and the golden arrays."""

    def __init__(self, family: str) -> None:
        self.arrays = arrays = golden(family)
        hw = arrays["level_hw"]
        self.features = [x.contiguous().requires_grad_() for x in to_maps(arrays["in/stu_feat"], hw)]
        losses = get_losses("crosskd", family)
        for node in losses.values():
            node.normalizer = "local_positives"  # as in their code
        model = DistilledDetector(
            student=build(family, arrays, "student", self.features),
            teacher=dict(model=build(family, arrays, "teacher", to_maps(arrays["in/tea_feat"], hw))),
            losses={name: instantiate(node) for name, node in losses.items()},
        )
        self.losses, self.seen, runs = model.losses, {}, []
        for name, loss in model.losses.items():
            loss.register_forward_pre_hook(lambda m, args, name=name: self.seen.update({name: args}))
        run_student = model._run_student
        model._run_student = lambda *args: runs.append(run_student(*args)) or runs[-1]
        batch = []
        for i in range(2):
            instances = Instances((64, 96), gt_boxes=Boxes(arrays[f"gt/boxes{i}"]), gt_classes=arrays[f"gt/classes{i}"])
            batch.append(dict(image=torch.zeros(3, 64, 96), instances=instances))
        self.found = run_step(model, batch)
        self.student = runs[0]
        if family == "FCOS":
            # Their FCOS divides by the sum of centerness targets: put in its place here.
            positive = arrays["tgt/labels"] != 5
            distances = arrays["tgt/bbox_targets"][positive].double().unflatten(-1, (2, 2))  # left top, right bottom
            centerness = (distances.amin(1) / distances.amax(1)).prod(-1).sqrt().sum()
            self.parity = positive.sum() / centerness
        else:
            self.parity = torch.ones((), dtype=torch.float64)
        self.normalizer = float(self.student.assignment.num_positives.sum() / self.parity)


@pytest.fixture(scope="module", params=list(FILES))
def run(request):
    return Run(request.param)


def boxes_from_mmdet(run, name, deltas):
    """Our raw box parameters in the units of theirs: in eval mode their FCOS gives pixels, after its ReLU."""
    if run.arrays["pred/tea_reg"].shape[1] == 1161:
        return to_flat(deltas)
    unit = [1] * 5 if name == "stu" else STRIDES
    return to_flat([x.relu() * s for x, s in zip(deltas, unit, strict=True)])


def test_assignment(run):
    expected = run.arrays["tgt/labels"]
    labels = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in run.student.assignment.labels], dim=1)
    assert torch.equal(labels.clamp(min=0)[labels >= 0], expected[labels >= 0])
    if "tgt/avg_factor" in run.arrays:
        assert run.student.assignment.num_positives.sum() == run.arrays["tgt/avg_factor"] == 105


@pytest.mark.parametrize("who", ["tea", "stu", "reused"])
def test_predictions(run, who):
    source, teacher, _ = run.seen["crosskd_cls"]
    output = {"tea": teacher, "stu": run.student.output, "reused": source}[who]
    tolerance = dict(rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(to_flat(output.logits), run.arrays[f"pred/{who}_cls"], **tolerance)
    deltas = boxes_from_mmdet(run, who, output.box_params)
    torch.testing.assert_close(deltas, run.arrays[f"pred/{who}_reg"], rtol=2e-5, atol=1e-4)
    if output.centerness is not None:
        centerness = to_flat([x[:, None] for x in output.centerness])
        torch.testing.assert_close(centerness, run.arrays[f"pred/{who}_ctr"], **tolerance)


@pytest.mark.parametrize("name, theirs", [("crosskd_cls", "loss_cls_kd"), ("crosskd_loc", "loss_reg_kd")])
def test_losses(run, name, theirs):
    expected = run.arrays[f"{theirs}__per_level"]
    total = run.found[f"loss_kd_{name}"] * run.parity
    torch.testing.assert_close(total.float(), expected.sum(), rtol=2e-5, atol=0)
    if len(expected) == 5:
        loss, (source, teacher, region) = run.losses[name], run.seen[name]
        levels = [loss.level_loss(source, teacher, i, weight) for i, weight in enumerate(region)]
        levels = torch.stack(levels) * loss.weight / run.normalizer
        torch.testing.assert_close(levels, expected, rtol=5e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name, theirs, maps",
    [
        ("crosskd_cls", "loss_cls_kd__grad_reused_cls", "logits"),
        ("crosskd_loc", "loss_reg_kd__grad_reused_reg", "box_params"),
    ],
)
def test_gradients_of_crossed_predictions(run, name, theirs, maps):
    source = run.seen[name][0]
    predictions = getattr(source, maps)
    grads = torch.autograd.grad(run.found[f"loss_kd_{name}"] * run.parity, predictions, retain_graph=True)
    found, expected = to_flat(grads), run.arrays[theirs]
    if maps == "box_params" and source.centerness is not None:
        # Theirs is per pixel and after the ReLU: it has no say where the ReLU stops it.
        strides = to_flat([torch.full_like(x, s) for x, s in zip(predictions, STRIDES, strict=True)])
        expected = expected * strides * (to_flat(predictions) > 0)
    assert expected.count_nonzero() > 100
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)


def test_gradients_of_the_students_features(run):
    total = (run.found["loss_kd_crosskd_cls"] + run.found["loss_kd_crosskd_loc"]) * run.parity
    grads = torch.autograd.grad(total, run.features, retain_graph=True)
    expected = to_maps(run.arrays["kd__grad_stu_feat"], run.arrays["level_hw"])
    for grad, theirs in zip(grads, expected, strict=True):
        # Aligning the two values of the 1x1 level leaves their order only: a gradient of rounding errors, 1e-11.
        torch.testing.assert_close(grad, theirs, rtol=1e-3, atol=2e-4 * theirs.abs().max().item() + 1e-10)
    assert torch.stack([g.abs().max() for g in grads])[:4].min() > 1e-6
