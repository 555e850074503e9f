"""Configs and files of a yacs project with a tiny RetinaNet. Not a test."""

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_model

import d2kd
from tests.helpers import LEVELS, build_backbone

KEY = "MODEL.DISTILLATION"


@BACKBONE_REGISTRY.register()
def own_backbone(cfg, input_shape):
    """The tiny backbone of tests.helpers, as a project would add one of its own."""
    return build_backbone(width=4, fpn=8)


TINY = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "own_backbone"),
    *("MODEL.RETINANET.IN_FEATURES", LEVELS, "MODEL.RETINANET.NUM_CONVS", 2, "MODEL.RETINANET.NUM_CLASSES", 3),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8, 12], [16, 24], [32, 48]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]], "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
]


def plain(options=TINY, *more):
    cfg = get_cfg()
    cfg.merge_from_list([*options, *more])
    return cfg


def wrapped(options=TINY, **keys):
    """``plain`` with the keys of MODEL.DISTILLATION, as a project writes them."""
    cfg = plain(options)
    d2kd.add_distillation_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "DistilledDetector"
    values = {"STUDENT_META_ARCHITECTURE": "RetinaNet", **keys}
    cfg.merge_from_list([x for key, value in values.items() for x in (f"{KEY}.{key}", value)])
    return cfg


def write_config(cfg, path):
    path.write_text(cfg.dump())
    return str(path)


def save(model, folder, name="teacher"):
    DetectionCheckpointer(model, str(folder)).save(name)
    return str(folder / f"{name}.pth")


ABSENT = {"TEACHER_CONFIG": "/nowhere/teacher.yaml", "TEACHER_WEIGHTS": "/nowhere/teacher.pth"}


def assert_same_tensors(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_weights(a, b):
    """But for what distillation adds."""
    a, b = (
        {name: value for name, value in model.state_dict().items() if not name.startswith("distillation.")}
        for model in (a, b)
    )
    assert_same_tensors(a, b)


def write_teacher(folder):
    """The keys of a teacher with a yacs file of its own."""
    torch.manual_seed(1)
    weights = save(build_model(plain()), folder)
    return {"TEACHER_CONFIG": write_config(plain(), folder / "teacher.yaml"), "TEACHER_WEIGHTS": weights}
