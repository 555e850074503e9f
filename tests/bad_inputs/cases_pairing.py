"""Students, teachers and losses that do not go together."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.runs import Arguments, distill, train, weights
from tests.nodes import fcos

__all__ = ["CASES"]

OF_FILE = (
    "d2kd train: model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG) is 'teacher.yaml'"
)

OWN_CLASS = """
from detectron2.modeling.meta_arch.fcos import FCOS

class Mine(FCOS):
    {method}

model.{node}._target_ = Mine
"""
OWN_HEAD = """
from detectron2.modeling.meta_arch.fcos import FCOSHead

class MyHead(FCOSHead):
    def forward(self, features):
        logits, deltas, centerness = super().forward(features)
        return [x + 1 for x in logits], deltas, centerness

model.teacher.model.head._target_ = MyHead
"""
PAIR = """
import d2kd
from detectron2.config import LazyCall as L
import torch
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from d2kd.data import class_map
from tests.nodes import fcos

model = d2kd.distill({student}, teacher={teacher}, teacher_checkpoint="teacher.pth", method="bckd")
"""
CLASS_MAP = """
from detectron2.config import LazyCall as L
from d2kd.data import class_map

model.teacher.class_map = L(class_map)(teacher={teacher!r}, student="birds_train", rename={rename!r})
"""
RCNN = "L(GeneralizedRCNN)()"
FOUR = "fcos(num_classes=4)"
NARROW = "retinanet(**{'head.conv_dims': [16, 16]})"


def row(given: str, arguments: Arguments, says: str) -> BadInput:
    return BadInput("Pairing", given, arguments, says)


def mapped(given: str, class_map: str, says: str) -> BadInput:
    """A map to three classes from a teacher of four."""
    arguments = distill("fcos()", FOUR, "bckd", f"model.teacher.class_map={class_map}")
    return row(f"a class map {given}", arguments, says)


def named(given: str, says: str, teacher: str | list[str], rename: dict[str, str] | None = None) -> BadInput:
    arguments = train(more=CLASS_MAP.format(teacher=teacher, rename=rename))
    return row(f"`class_map()` {given}", arguments, says)


def from_file(given: str, content: str, says: str, name: str = "teacher.yaml") -> BadInput:
    """The teacher is given by its config file."""
    arguments = train(
        more=PAIR.format(student="fcos()", teacher=repr(name)), change=lambda folder: write(folder / name, content)
    )
    return row(f"a teacher's config {given}", arguments, says)


def pair(given: str, student: str, teacher: str, says: str) -> BadInput:
    return row(given, train(more=PAIR.format(student=student, teacher=teacher)), says)


def own(given: str, node: str, method: str, says: str) -> BadInput:
    return row(given, train(more=OWN_CLASS.format(node=node, method=method)), says)


def write(path: Path, content: str) -> None:
    if content:
        path.write_text(content)


def with_one_level(folder: Path) -> None:
    node = fcos(head_in_features=["p4"])
    torch.save({"model": weights(node)}, folder / "teacher.pth")


CASES = [
    row(
        "a teacher of other classes",
        distill("fcos()", FOUR, "bckd"),
        "d2kd train: The student has 3 classes and the teacher 4: give both the same "
        "(model.student.num_classes, model.teacher.model.num_classes), or say which of the teacher's are "
        "which of the student's: model.teacher.class_map={teacher id: student id}.",
    ),
    mapped(
        "of an id that the teacher lacks",
        "{0:0,1:1,7:2}",
        "d2kd train: model.teacher.class_map has 7: 2, but the teacher's classes are the whole numbers from 0 to 3.",
    ),
    mapped(
        "of an id that the student lacks",
        "{0:0,1:3}",
        "d2kd train: model.teacher.class_map has 1: 3, but the student's classes are the whole numbers from 0 to 2.",
    ),
    mapped(
        "of a class to null",
        "{0:0,1:null}",
        "d2kd train: model.teacher.class_map has 1: None, but the student's classes are the whole numbers from 0 to 2.",
    ),
    mapped("that is empty", "{}", "d2kd train: model.teacher.class_map is empty: no class would be distilled."),
    mapped(
        "that is a list",
        "[0,1,2]",
        "d2kd train: model.teacher.class_map is [0, 1, 2], expected a mapping of teacher ids to student ids.",
    ),
    named(
        "of an unknown dataset",
        "d2kd train: class_map()'s teacher is 'birds_trian', which is no registered dataset; did you mean"
        " birds_train or birds_val? (or give the list of its classes).",
        "birds_trian",
    ),
    named(
        "without a name in common",
        "d2kd train: class_map() found no class of the student (tern, heron, plover) among the teacher's "
        "(cat, dog, fox): give rename={teacher's name: student's name} for those spelt otherwise.",
        ["cat", "dog", "fox"],
    ),
    named(
        "that renames what is not there",
        "d2kd train: class_map()'s rename has 'gull', which is no class of the teacher's.",
        ["tern", "heron", "plover"],
        {"gull": "tern"},
    ),
    named(
        "with a name twice",
        "d2kd train: class_map()'s teacher has classes of one name: 'tern'; give an id map.",
        ["tern", "tern", "plover"],
    ),
    row(
        "levels without a stride in common",
        train(
            "model.student.head_in_features=[p3]",
            "model.teacher.model.head_in_features=[p4,p5]",
            more="from detectron2.layers import ShapeSpec\n"
            "model.student.head.input_shape = [ShapeSpec(channels=8)]\n"
            "model.teacher.model.head.input_shape = [ShapeSpec(channels=8)] * 2\n",
            change=lambda folder: torch.save(
                {"model": {k: v for k, v in weights(fcos()).items() if k != "head.scales.2.scale"}},
                folder / "teacher.pth",
            ),
        ),
        "d2kd train: The student has levels of strides [8] and the teacher [16, 32]: they must have one "
        "in common (model.student.head_in_features, model.teacher.model.head_in_features).",
    ),
    row(
        "a head for other levels",
        train("model.student.head_in_features=[p3,p4]"),
        "d2kd train: model.student.head is made for 3 levels (its input_shape), but "
        "model.student.head_in_features are p3, p4: give it as many.",
    ),
    row(
        "other sizes of anchors",
        distill("retinanet()", "retinanet(**{'anchor_generator.sizes': [[16, 24], [32, 48], [64, 96]]})", "bckd"),
        "d2kd train: model.losses.bckd_cls compares the student's own predictions with the teacher's, but"
        " a RetinaNet student and a RetinaNet teacher of these configs have different anchors ([0.0, 0.0,"
        " 8.0, 8.0] and [-4.0, -4.0, 12.0, 12.0] on level 0): give them the same "
        "(model.student.anchor_generator, model.teacher.model.anchor_generator; FCOS: its backbone's "
        "strides), or use source='crossed'.",
    ),
    row(
        "another number of anchors a cell",
        distill(
            "retinanet()",
            "retinanet(**{'anchor_generator.sizes': [[8], [16], [32]], 'head.num_anchors': 1})",
            "bckd",
        ),
        "d2kd train: model.losses.bckd_cls compares the student's own predictions with the teacher's, but"
        " a RetinaNet student and a RetinaNet teacher of these configs have different anchors (2 and 1 a "
        "cell of level 0): give them the same (model.student.anchor_generator, "
        "model.teacher.model.anchor_generator; FCOS: its backbone's strides), or use source='crossed'.",
    ),
    row(
        "a GFL student, an FCOS teacher and BCKD",
        distill("gfl()", "fcos()", "bckd"),
        "d2kd train: model.losses.bckd_cls compares the student's own predictions with the teacher's, but"
        " a GFL student and a FCOS teacher of these configs have different anchors ([-8.0, -8.0, 8.0, "
        "8.0] and [0.0, 0.0, 8.0, 8.0] on level 0): give them the same (model.student.anchor_generator, "
        "model.teacher.model.anchor_generator; FCOS: its backbone's strides), or use source='crossed'.",
    ),
    row(
        "LD of detectors without distributions",
        distill("fcos()", "fcos()", "ld"),
        "d2kd train: model.losses.ld_main: LocalizationDistillation compares the distributions of box "
        "edges and needs equal bins on both sides, but student (FCOS) has none and the teacher (FCOS) has"
        " none: give both detectors a distribution head (GFL, DistributionRetinaNet, DistributionFCOS, "
        "DistributionATSS) of the same head.reg_max, or use IoULocalizationKD.",
    ),
    row(
        "LD of distributions of other bins",
        distill("gfl()", "gfl(**{'head.reg_max': 8})", "ld"),
        "d2kd train: model.losses.ld_main: LocalizationDistillation compares the distributions of box "
        "edges and needs equal bins on both sides, but student (GFL) has 5 (reg_max=4) and the teacher "
        "(GFL) has 9 (reg_max=8): give both detectors a distribution head (GFL, DistributionRetinaNet, "
        "DistributionFCOS, DistributionATSS) of the same head.reg_max, or use IoULocalizationKD.",
    ),
    row(
        "LD of a teacher without distributions",
        distill("gfl()", "retinanet()", "ld"),
        "d2kd train: model.losses.ld_main compares the student's own predictions with the teacher's, but "
        "a GFL student and a RetinaNet teacher of these configs have different anchors (1 and 2 a cell of"
        " level 0): give them the same (model.student.anchor_generator, "
        "model.teacher.model.anchor_generator; FCOS: its backbone's strides), or use source='crossed'.",
    ),
    row(
        "FTPD of boxes coded in another way",
        distill("retinanet()", "retinanet(**{'box2box_transform.weights': [10.0, 10.0, 5.0, 5.0]})", "ftpd"),
        "d2kd train: model.losses.ftpd_dlt: DynamicBoxKD compares box parameters as the heads code them, "
        "but the student codes them by Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)) and the teacher by "
        "Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)): give both one box2box_transform "
        "(model.student.box2box_transform, model.teacher.model.box2box_transform; in a yacs config: "
        "MODEL.RPN.BBOX_REG_WEIGHTS or MODEL.RETINANET.BBOX_REG_WEIGHTS), or take IoULocalizationKD, "
        "which compares decoded boxes.",
    ),
    row(
        "CrossKD into a wider head",
        distill("retinanet()", NARROW, "crosskd"),
        "d2kd train: model.losses.crosskd_cls (tail=1) sends the student's 8 channels of the 'cls' tower "
        "into the teacher's head, which takes 16 there: set model.tap_projector_channels=[8, 16] to train"
        " a projector, a 1x1 convolution, between them, or give both heads the same width "
        "(model.student.head.conv_dims, or the FPN's out_channels where the tap is the head's input).",
    ),
    row(
        "a projector of other widths",
        distill("retinanet()", NARROW, "crosskd", "model.tap_projector_channels=[16,8]"),
        "d2kd train: model.tap_projector_channels is [16, 8], but model.losses.crosskd_cls (tail=1) sends"
        " the student's 8 channels of the 'cls' tower into the teacher's head, which takes 16 there: set "
        "it to [8, 16].",
    ),
    row(
        "a projector of one width",
        distill("retinanet()", NARROW, "crosskd", "model.tap_projector_channels=[8]"),
        "d2kd train: model.tap_projector_channels is [8], expected the student's channels and the "
        "teacher's, such as [128, 256], or null.",
    ),
    row(
        "a tail longer than the student's head",
        distill("fcos()", "fcos()", "crosskd", "model.losses.crosskd_cls.tail=3"),
        "d2kd train: model.losses.crosskd_cls has tail=3, but the 'cls' tower of the student's head has 2"
        " blocks: set model.losses.crosskd_cls.tail to 2 or less.",
    ),
    row(
        "a tail longer than the teacher's head",
        distill("retinanet()", "retinanet(**{'head.conv_dims': [8]})", "crosskd", "model.losses.crosskd_cls.tail=2"),
        "d2kd train: model.losses.crosskd_cls has tail=2, but the 'cls' tower of the teacher's head has 1"
        " blocks: set model.losses.crosskd_cls.tail to 1 or less.",
    ),
    row(
        "a teacher's head that does more than its predictors",
        train(more=OWN_HEAD),
        "d2kd train: model.losses.crosskd_cls crosses heads, but the teacher's own taps do not give its "
        "own predictions: MyHead.forward does more than its towers and predictors. Register an Adapter "
        "whose predict() does it too, or choose losses with source='student'.",
    ),
    own(
        "a student that overrides `forward`",
        "student",
        "def forward(self, x): return super().forward(x)",
        "d2kd train: builtins.Mine overrides DenseDetector.forward, which d2kd replaces by its four steps"
        " (preprocess_image, backbone, head, forward_training); move what it adds in training into one of those. If it adds something in inference alone, write trains_in_four_steps = True beside it (docs/own_detector.md#a-detector-with-its-own-forward).",
    ),
    own(
        "a student that never calls `label_anchors`",
        "student",
        "def forward_training(self, images, features, *args): return {'loss_cls': features[0].sum() * 0}",
        "d2kd train: Mine.forward_training called label_anchors 0 times, expected once: d2kd takes the "
        "assignment from that call.",
    ),
    own(
        "a teacher that overrides `preprocess_image`",
        "teacher.model",
        "def preprocess_image(self, x): return super().preprocess_image(x)",
        "d2kd train: The teacher Mine overrides preprocess_image, which d2kd replaces (the teacher sees "
        "the student's canvas): move what it adds into its backbone.",
    ),
    pair(
        "a two-stage teacher",
        "fcos()",
        RCNN,
        "d2kd train: distill()'s teacher: detectron2.modeling.meta_arch.rcnn.GeneralizedRCNN is a two-stage "
        "detector, and d2kd distils one-stage ones: ATSS, FCOS, GFL, RetinaNet and their subclasses (docs/own_detector.md#two-stage-detectors).",
    ),
    pair(
        "a two-stage student",
        RCNN,
        "fcos()",
        "d2kd train: distill()'s model: detectron2.modeling.meta_arch.rcnn.GeneralizedRCNN is a two-stage "
        "detector, and d2kd distils one-stage ones: ATSS, FCOS, GFL, RetinaNet and their subclasses (docs/own_detector.md#two-stage-detectors).",
    ),
    pair(
        "a teacher that is distilled already",
        "fcos()",
        "model",
        "d2kd train: teacher is distilled already, expected the node of the teacher alone: give it teacher.student.",
    ),
    pair(
        "a teacher that is built",
        "fcos()",
        "instantiate(fcos())",
        "d2kd train: distill() got a FCOS that is already built as teacher, but a config must stay text, "
        "to be saved and overridden: give its node, or the path of its config file; or call "
        "DistilledDetector(..., teacher={'model': module}) yourself.",
    ),
    pair(
        "no teacher in `distill()`",
        "fcos()",
        "None",
        "d2kd train: Expected teacher to be a model node with a _target_ or the path of a config file, found NoneType.",
    ),
    from_file("that is not there", "", OF_FILE + ", but there is no such file."),
    from_file("that is empty", "\n", OF_FILE + ", a file without keys."),
    from_file(
        "that is no YAML",
        "MODEL: [1,\n  a: 2",
        "d2kd train: model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG): "
        'teacher.yaml is no YAML without code: while parsing a flow sequence in "teacher.yaml", line 1, '
        "column 8 expected ',' or ']', but got '<stream end>' in \"teacher.yaml\", line 2, column 7",
    ),
    from_file(
        "that runs code",
        "MODEL:\n  X: !!python/object/apply:os.system ['true']\n",
        OF_FILE + ": teacher.yaml: it has !!python/object/apply:os.system, which would run code when it is read: "
        "give the LazyConfig .py that it was made from.",
    ),
    from_file(
        "that names what is no network",
        "model:\n  _target_: os.system\n  command: 'true'\n",
        OF_FILE + ": it names os.system, expected networks of d2kd.modeling, detectron2.layers, "
        "detectron2.modeling, fvcore.nn, timm, torch.nn, torchvision.models, torchvision.ops, since a "
        "config from elsewhere must run no other code: if you trust it and this package, set "
        "model.teacher.model.trust=[os] (in a yacs config: MODEL.DISTILLATION.TEACHER_TRUST).",
    ),
    from_file(
        "of a two-stage detector",
        "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n",
        OF_FILE + ", in which MODEL.META_ARCHITECTURE is 'GeneralizedRCNN': "
        "detectron2.modeling.meta_arch.rcnn.GeneralizedRCNN is a two-stage detector, and d2kd distils one-stage ones: ATSS, FCOS, GFL, RetinaNet and their subclasses (docs/own_detector.md#two-stage-detectors).",
    ),
    from_file(
        "of an unknown detector",
        "MODEL:\n  META_ARCHITECTURE: MyNet\n",
        OF_FILE + ", in which MODEL.META_ARCHITECTURE is 'MyNet', which is not in detectron2's META_ARCH_REGISTRY: "
        "Of those that are, d2kd may read ATSS, FCOS, GFL, RetinaNet; import the module that registers yours before the model is built (docs/own_detector.md#another-projects-registry).",
    ),
    from_file(
        "based on a file that is not there",
        "_BASE_: base.yaml\nMODEL:\n  META_ARCHITECTURE: RetinaNet\n",
        OF_FILE + ": [Errno 2] No such file or directory: 'base.yaml'",
    ),
    from_file(
        "without its base",
        "MODEL:\n  META_ARCHITECTURE: RetinaNet\n",
        OF_FILE + ", in which MODEL.META_ARCHITECTURE is 'RetinaNet', which cannot be built of this config (is its "
        "_BASE_ missing?): KeyError: 'p3'.",
    ),
    from_file(
        "with a text for a number",
        "MODEL:\n  RETINANET:\n    NUM_CLASSES: three\n",
        OF_FILE + ": Type mismatch (<class 'int'> vs. <class 'str'>) with values (80 vs. three) for config key: "
        "MODEL.RETINANET.NUM_CLASSES",
    ),
    from_file(
        "without a model",
        "optimizer = dict(lr=1)\n",
        "d2kd train: model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG) is "
        "'teacher.py', a LazyConfig without a `model` node to instantiate; it has optimizer.",
        name="teacher.py",
    ),
    from_file(
        "that fails",
        "model = 1 / 0\n",
        "d2kd train: model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG) is "
        "'teacher.py', which cannot be read: ZeroDivisionError: division by zero.",
        name="teacher.py",
    ),
    from_file(
        "of JSON",
        "{}",
        "d2kd train: distill()'s teacher is 'teacher.json', expected a yacs config (.yaml) or a "
        "LazyConfig (.py, or a dumped .yaml).",
        name="teacher.json",
    ),
    pair(
        "a teacher's config that is a program of a URL",
        "fcos()",
        "'https://example.org/teacher.py'",
        "d2kd train: model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG) is "
        "'https://example.org/teacher.py', a program, and no code from elsewhere is run: read it and give"
        " the path of a copy.",
    ),
    row(
        "`model.teacher.input_format` misspelt",
        train("model.teacher.input_format=rgb"),
        "d2kd train: model.teacher.input_format (in a yacs config: "
        "MODEL.DISTILLATION.TEACHER_INPUT_FORMAT) is 'rgb', expected 'BGR', 'RGB' or 'L'.",
    ),
    row(
        "`model.teacher.input_format` of another number of channels",
        train("model.teacher.input_format=L"),
        "d2kd train: model.teacher.input_format (in a yacs config: "
        "MODEL.DISTILLATION.TEACHER_INPUT_FORMAT) is 'L', but the FCOS's pixel_mean has 3 channels: 'L' "
        "is for one, 'BGR' and 'RGB' for others.",
    ),
    row(
        "`model.teacher.input_format` that is not the teacher's own",
        distill(
            "retinanet()",
            "retinanet()",
            "bckd",
            "model.teacher.input_format=RGB",
            "+model.teacher.model.input_format=BGR",
        ),
        "d2kd train: model.teacher.input_format (in a yacs config: "
        "MODEL.DISTILLATION.TEACHER_INPUT_FORMAT) is 'RGB', but the RetinaNet itself has "
        "input_format='BGR': remove one.",
    ),
    row(
        "a teacher of grey images",
        train("model.teacher.model.pixel_mean=[1]", "model.teacher.model.pixel_std=[1]"),
        "d2kd train: The channels of the student's images are 3 (model.student.pixel_mean) and of the "
        "teacher's 1 (model.teacher.model.pixel_mean), but both see the same images: take a teacher of as"
        " many.",
    ),
    row(
        "a `pixel_std` of zeros of the teacher",
        train("model.teacher.model.pixel_std=[0,0,0]"),
        "d2kd train: model.teacher.model.pixel_std is [0.0, 0.0, 0.0], expected numbers > 0, by which "
        "pixels are divided.",
    ),
    row(
        "a teacher that pads to smaller squares than the student",
        train("model.student.backbone.square_pad=128", "model.teacher.model.backbone.square_pad=64"),
        "d2kd train: The student pads to squares of 128 pixels and the teacher to squares of 64: the "
        "teacher's must be as large (model.student.backbone.square_pad, "
        "model.teacher.model.backbone.square_pad).",
    ),
    row(
        "a teacher that pads to squares smaller than an image",
        train("model.teacher.model.backbone.square_pad=32"),
        "d2kd train: The teacher pads to squares of 32 pixels, but the student's canvas is 64x64: resize "
        "the training images to fit (dataloader.train.mapper.augmentations).",
    ),
    row(
        "`model.teacher.precision` misspelt",
        train("model.teacher.precision=half"),
        "d2kd train: model.teacher.precision is 'half', expected one of 'fp32', 'bf16', 'fp16' (in a yacs"
        " config: MODEL.DISTILLATION.TEACHER_PRECISION).",
    ),
    row(
        "`model.teacher.engine` that does not exist",
        train("model.teacher.engine=tensorrt"),
        "d2kd train: model.teacher.engine is 'tensorrt', expected one of 'eager', 'folded', 'compile' (in"
        " a yacs config: MODEL.DISTILLATION.TEACHER_ENGINE).",
    ),
    row(
        "`model.teacher.preflight` that is neither on nor off",
        train("model.teacher.preflight=maybe"),
        "d2kd train: model.teacher.preflight is 'maybe', expected 'on' or 'off' (in a yacs config: "
        "MODEL.DISTILLATION.TEACHER_PREFLIGHT).",
    ),
    row(
        "losses without a teacher",
        train("model.teacher=null"),
        "d2kd train: model.losses has crosskd_cls, crosskd_loc but model.teacher is null: name a teacher,"
        " or set model.losses=null to train the student alone.",
    ),
    row(
        "`--check-teacher` without losses",
        train("model.losses=null", options=["--check-teacher"]),
        "d2kd train: There is no teacher to check (--check-teacher), expected a model.teacher and at "
        "least one of model.losses.",
    ),
    row(
        "the teacher's folder as `train.output_dir`",
        train("train.output_dir=."),
        "d2kd train: train.output_dir=. holds the teacher's checkpoint (teacher.pth), which this run "
        "would write over: choose another folder.",
    ),
]
