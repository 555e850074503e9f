"""GFL, ATSS and FCOS from yacs configs."""

import inspect

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg, instantiate
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.fcos import FCOS

from d2kd.config import get_detectron2_config
from d2kd.losses import BinaryClassificationKD
from d2kd.modeling.backbones import P6P7
from d2kd.modeling.detectors import ATSS, GFL, ATSSAssigner, add_atss_config, add_fcos_config, add_gfl_config
from d2kd.modeling.detectors.base import AssignedDetector
from tests.helpers import distilled, make_batch, run_step

FEATURES = ["res3", "res4", "res5"]


def make_cfg(name):
    cfg = get_cfg()
    {"GFL": add_gfl_config, "ATSS": add_atss_config, "FCOS": add_fcos_config}[name](cfg)
    relu = "relu_" if name == "FCOS" else ""
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", name, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
            *("MODEL.BACKBONE.NAME", f"build_resnet_fpn_{relu}p6p7_backbone"),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.RESNETS.OUT_FEATURES", FEATURES, "MODEL.FPN.IN_FEATURES", FEATURES),
            *("MODEL.FPN.OUT_CHANNELS", 64, f"MODEL.{name}.NUM_CONVS", 1, f"MODEL.{name}.NUM_CLASSES", 3),
        ]
    )
    return cfg


@pytest.mark.parametrize("detector_class", [GFL, ATSS])
def test_built_with_the_constructors_defaults(detector_class):
    name = detector_class.__name__
    detector = build_model(make_cfg(name))
    assert type(detector) is detector_class
    parameters = {
        key: x.default
        for cls in (AssignedDetector, detector_class)
        for key, x in inspect.signature(inspect.unwrap(cls.__init__)).parameters.items()
        if x.default not in (inspect.Parameter.empty, None)
    }
    assert len(parameters) >= 9
    for key, value in parameters.items():
        assert getattr(detector, key) == value, key
    assert detector.head_in_features == ["p3", "p4", "p5", "p6", "p7"] and detector.num_classes == 3
    anchors = detector.anchor_generator([torch.zeros(1, 1, 1, 2)] * 5)
    for boxes, stride in zip(anchors, (8, 16, 32, 64, 128), strict=True):
        half = 4 * stride
        assert boxes.tensor.tolist() == [[-half, -half, half, half], [stride - half, -half, stride + half, half]]
    assert isinstance(detector.assigner, ATSSAssigner) and detector.assigner.topk == 9
    top = detector.backbone.top_block
    assert isinstance(top, P6P7) and top.in_feature == "p5" and not top.relu_before_p7
    head = detector.head
    assert (head.reg_max, head.centerness_on) == ((16, None) if name == "GFL" else (None, "box"))
    assert head.cls_subnet[1].num_groups == 32 and len(head.scales) == 5
    if name == "ATSS":
        assert list(detector.box2box_transform.weights) == [10.0, 10.0, 5.0, 5.0]


@pytest.mark.parametrize("name", ["GFL", "ATSS"])
def test_every_key_has_an_effect(name):
    cfg = make_cfg(name)
    node = cfg.MODEL[name]
    node.IN_FEATURES = ["p4", "p5"]
    node.NUM_CONVS, node.NORM, node.PRIOR_PROB, node.NUM_CLASSES = 2, "", 0.2, 5
    node.ANCHOR_SCALE, node.ANCHOR_OFFSET, node.ATSS_TOPK = 4.0, 0.5, 7
    node.SCORE_THRESH_TEST, node.TOPK_CANDIDATES_TEST, node.NMS_THRESH_TEST = 0.1, 50, 0.5
    node.BBOX_REG_LOSS_WEIGHT = 3.0
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.INPUT.FORMAT = 11, "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    if name == "GFL":
        node.REG_MAX, node.QFL_BETA, node.DFL_LOSS_WEIGHT = 8, 1.0, 0.5
    else:
        node.BBOX_REG_WEIGHTS, node.CENTERNESS_LOSS_WEIGHT = (1.0, 1.0, 1.0, 1.0), 0.5
        node.FOCAL_LOSS_GAMMA, node.FOCAL_LOSS_ALPHA = 1.0, 0.5
    defaults = make_cfg(name).MODEL[name]
    assert all(node[key] != defaults[key] for key in node)  # all are tried here

    detector = build_model(cfg)
    head = detector.head
    assert detector.head_in_features == ["p4", "p5"] and head.num_levels == 2
    assert len(head.cls_subnet) == 4 and head.cls_score.out_channels == 5 == detector.num_classes
    torch.testing.assert_close(head.cls_score.bias.sigmoid(), torch.full((5,), 0.2))
    assert detector.anchor_generator([torch.zeros(1, 1, 1, 1)] * 2)[0].tensor.tolist() == [[-24.0, -24.0, 40.0, 40.0]]
    assert detector.assigner.topk == 7
    found = [detector.test_score_thresh, detector.test_topk_candidates, detector.test_nms_thresh]
    assert found == [0.1, 50, 0.5]
    assert (detector.max_detections_per_image, detector.input_format) == (11, "RGB")
    assert detector.pixel_mean.flatten().tolist() == [1, 2, 3] and detector.pixel_std.flatten().tolist() == [4, 5, 6]
    assert detector.box_loss_weight == 3
    if name == "GFL":
        assert (head.reg_max, detector.qfl_beta, detector.dfl_loss_weight) == (8, 1.0, 0.5)
    else:
        assert list(detector.box2box_transform.weights) == [1, 1, 1, 1]
        found = [detector.centerness_loss_weight, detector.focal_loss_gamma, detector.focal_loss_alpha]
        assert found == [0.5, 1.0, 0.5]


def test_fcos_is_that_of_detectron2s_own_config():
    """Every value, and from the same random numbers every weight and detection."""
    node = get_detectron2_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    cfg = get_cfg()
    add_fcos_config(cfg)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "FCOS", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnet_fpn_relu_p6p7_backbone"])
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", FEATURES, "MODEL.FPN.IN_FEATURES", FEATURES])
    built = []
    for build in (lambda: build_model(cfg), lambda: instantiate(node)):
        torch.manual_seed(0)
        built.append(build().eval())
    ours, theirs = built
    assert type(ours) is type(theirs) is FCOS
    numbers = {name: x for name, x in vars(theirs).items() if isinstance(x, (int, float, list))}
    assert {"center_sampling_radius", "focal_loss_alpha", "test_score_thresh", "num_classes"} <= numbers.keys()
    assert {name: getattr(ours, name) for name in numbers} == numbers
    ours.test_score_thresh = theirs.test_score_thresh = 0.0
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(1, 3, 64, 96)
    maps, same = (x.backbone(images) for x in built)
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"] and all(torch.equal(x, same[name]) for name, x in maps.items())
    batch = [{"image": torch.rand(3, 64, 96) * 255}]
    found, expected = (x(batch)[0]["instances"] for x in built)
    assert len(found) > 0 and torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_every_key_of_fcos_has_an_effect():
    cfg = make_cfg("FCOS")
    node = cfg.MODEL.FCOS
    node.IN_FEATURES = ["p4", "p5"]
    node.NUM_CONVS, node.NORM, node.PRIOR_PROB, node.NUM_CLASSES = 2, "", 0.2, 5
    node.SCORE_THRESH_TEST, node.TOPK_CANDIDATES_TEST, node.NMS_THRESH_TEST = 0.1, 50, 0.5
    node.CENTER_SAMPLING_RADIUS, node.FOCAL_LOSS_GAMMA, node.FOCAL_LOSS_ALPHA = 2.5, 1.0, 0.5
    cfg.INPUT.FORMAT = "RGB"
    defaults = make_cfg("FCOS").MODEL.FCOS
    assert all(node[key] != defaults[key] for key in node)
    detector = build_model(cfg)
    assert detector.head_in_features == ["p4", "p5"] and detector.num_classes == 5
    assert len(detector.head.cls_subnet) == 4 and detector.head.cls_score.out_channels == 5
    torch.testing.assert_close(detector.head.cls_score.bias.sigmoid(), torch.full((5,), 0.2))
    found = [detector.test_score_thresh, detector.test_topk_candidates, detector.test_nms_thresh]
    assert found == [0.1, 50, 0.5] and detector.input_format == "RGB"
    found = [detector.center_sampling_radius, detector.focal_loss_gamma, detector.focal_loss_alpha]
    assert found == [2.5, 1.0, 0.5]


def test_an_fcos_that_a_project_registered_stays(monkeypatch):
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", {**dict(META_ARCH_REGISTRY), "FCOS": int})
    add_fcos_config(get_cfg())
    assert META_ARCH_REGISTRY.get("FCOS") is int


@pytest.mark.parametrize("name", ["GFL", "ATSS", "FCOS"])
def test_trains_and_predicts(name, tmp_path):
    """A distilled step, and Detectron2's predictor on its checkpoint."""
    cfg = make_cfg(name)
    cfg.MODEL[name].SCORE_THRESH_TEST = 0.005
    cfg.INPUT.MIN_SIZE_TEST = 64
    torch.manual_seed(0)
    detector, teacher = build_model(cfg), build_model(cfg)
    detector = distilled(detector, teacher, dict(kd=BinaryClassificationKD()))
    losses = run_step(detector, make_batch([(64, 96)]))
    assert all(x.isfinite() for x in losses.values()) and len(losses) == 4
    DetectionCheckpointer(detector, save_dir=str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    image = make_batch([(64, 96)])[0]["image"]
    found = DefaultPredictor(cfg)(image.permute(1, 2, 0).numpy())["instances"]
    expected = detector.eval()([{"image": image}])[0]["instances"]
    assert len(found) > 0
    torch.testing.assert_close(found.scores, expected.scores.detach())


def test_both_configs_in_one():
    cfg = get_cfg()
    add_gfl_config(cfg)
    add_atss_config(cfg)
    assert cfg.MODEL.GFL.NUM_CLASSES == cfg.MODEL.ATSS.NUM_CLASSES == 80
    assert cfg.dump() and "REG_MAX" not in cfg.MODEL.ATSS
