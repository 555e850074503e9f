"""Options of losses and methods outside their range."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.runs import Arguments, distill, train

__all__ = ["CASES"]

LOSS = "d2kd train: model.losses.mine: "

SCHEDULE = "fvcore.common.param_scheduler.LinearParamScheduler"
RAMP = dict(_target_=SCHEDULE, start_value=0.0, end_value=1.0)


def row(given: str, arguments: Arguments, says: str) -> BadInput:
    return BadInput("Method", given, arguments, says)


def loss(given: str, says: str, kernel: str = "BinaryClassificationKD", **options: Any) -> BadInput:
    """One more loss, of these options."""
    node = dict(_target_=f"d2kd.losses.{kernel}", **options)
    return row(given, train(more=f"from math import inf, nan\nmodel.losses.mine = {node!r}\n"), says)


def called(given: str, call: str, says: str) -> BadInput:
    """A kernel's function in a person's own code."""
    return row(given, train(more=f"import torch\nfrom d2kd import losses\n\nlosses.{call}\n"), says)


CASES = [
    row(
        "`--method` misspelt",
        train(options=["--method", "croskd"]),
        "d2kd train: Unknown method 'croskd', expected one of bckd, ld, crosskd, ftpd, ftpd_hetero, tid, "
        "tid_reliable, pkd, cwd, bckd_pkd, crosskd_pkd, ftpd_tid; did you mean crosskd or crosskd_pkd or "
        "bckd?",
    ),
    row(
        "a loss whose kernel is misspelt",
        train("model.losses.crosskd_cls._target_=d2kd.losses.BinaryClasification"),
        "d2kd train: model.losses.crosskd_cls._target_ is 'd2kd.losses.BinaryClasification', which cannot"
        " be imported: correct the name, or install its package.",
    ),
    row(
        "a loss that is no loss",
        train(more="model.losses.mine = dict(_target_='torch.nn.ReLU')\n"),
        "d2kd train: model.losses.mine is a ReLU, expected a DistillationLoss.",
    ),
    row(
        "a loss without `_target_`",
        train(more="model.losses.mine = dict(weight=1.0)\n"),
        "d2kd train: model.losses.mine is a mapping without _target_, expected a DistillationLoss.",
    ),
    row(
        "a loss that is a number",
        train(more="model.losses.mine = 1.0\n"),
        "d2kd train: model.losses.mine is a float, expected a DistillationLoss.",
    ),
    row(
        "`model.losses` as a list",
        train(more="model.losses = [model.losses.crosskd_cls]\n"),
        "d2kd train: model.losses is a list, expected losses by name, or null; --method takes the losses "
        "of a method, and so does distill(..., method=NAME).",
    ),
    row(
        "a loss's name with a dot",
        train(more="model.losses['my.loss'] = model.losses.crosskd_cls\n"),
        "d2kd train: model.losses.my.loss: 'my.loss' cannot name a loss, choose another name.",
    ),
    row(
        "the weights of all losses 0",
        train("model.losses.crosskd_cls.weight=0", "model.losses.crosskd_loc.weight=0"),
        "d2kd train: The weights of all model.losses (crosskd_cls, crosskd_loc) are 0, so that nothing "
        "would be distilled: set a weight, or model.losses=null to train the student alone.",
    ),
    loss(
        "an option that the kernel lacks",
        LOSS + "DistillationLoss.__init__() got an unexpected keyword argument 'temperature'",
        temperature=2.0,
    ),
    loss(
        "a negative weight",
        LOSS + "BinaryClassificationKD.weight is -1.0, expected a finite number >= 0 (0 turns the loss off).",
        weight=-1.0,
    ),
    loss(
        "a weight of NaN",
        LOSS + "BinaryClassificationKD.weight is nan, expected a finite number >= 0 (0 turns the loss off).",
        weight=float("nan"),
    ),
    loss(
        "an infinite weight",
        LOSS + "BinaryClassificationKD.weight is inf, expected a finite number >= 0 (0 turns the loss off).",
        weight=float("inf"),
    ),
    loss(
        "a weight that is a text",
        LOSS + "BinaryClassificationKD.weight is '0.5', expected a finite number >= 0 (0 turns the loss off).",
        weight="0.5",
    ),
    loss(
        "a source misspelt",
        LOSS + "BinaryClassificationKD.source is 'teacher', expected one of student, crossed.",
        source="teacher",
    ),
    loss(
        "a negative tail",
        LOSS + "BinaryClassificationKD.tail is -1, expected a whole number >= 0.",
        source="crossed",
        tail=-1,
    ),
    loss(
        "a tail of a half",
        LOSS + "BinaryClassificationKD.tail is 0.5, expected a whole number >= 0.",
        source="crossed",
        tail=0.5,
    ),
    loss(
        "a region misspelt",
        LOSS + "BinaryClassificationKD.region is 'positive', expected one of all_locations, everywhere, "
        "fine_grained, gap, general_instances, inside_box, main, main_and_valuable, positives, "
        "task_integration.weak, task_integration.key, task_integration.rest, teacher_quality, "
        "valuable_localization.",
        region="positive",
    ),
    loss(
        "an option that the region lacks",
        LOSS + "BinaryClassificationKD.region 'gap' has no option 'gamma'; it has none.",
        region=dict(name="gap", gamma=1.0),
    ),
    loss(
        "a region without a name",
        LOSS + "BinaryClassificationKD.region is None, expected one of all_locations, everywhere, fine_grained, "
        "gap, general_instances, inside_box, main, main_and_valuable, positives, task_integration.weak, "
        "task_integration.key, task_integration.rest, teacher_quality, valuable_localization.",
        region=dict(gamma=1.0),
    ),
    loss(
        "a region's option outside its range",
        LOSS + "BinaryClassificationKD.region 'valuable_localization': gamma is 1.0, expected a number in [0, 1).",
        region=dict(name="valuable_localization", gamma=1.0),
    ),
    loss(
        "a region that is one of several",
        LOSS + "BinaryClassificationKD.region is 'task_integration', expected task_integration.weak or "
        "task_integration.key or task_integration.rest.",
        region="task_integration",
    ),
    loss(
        "a normaliser misspelt",
        LOSS + "BinaryClassificationKD.normalizer is 'positive', expected one of positives, images, locations, "
        "level_locations, level_mean, local_positives, none.",
        normalizer="positive",
    ),
    loss(
        "a schedule that is a number",
        LOSS + "BinaryClassificationKD.schedule is a float, expected a ParamScheduler of fvcore.",
        schedule=0.5,
        schedule_iters=10,
    ),
    loss(
        "a schedule without its iterations",
        LOSS + "BinaryClassificationKD.schedule_iters is None, expected a whole number >= 1.",
        schedule=RAMP,
    ),
    loss(
        "a schedule that is negative",
        LOSS + "BinaryClassificationKD.schedule is -1 at 0% of its iterations, expected >= 0.",
        schedule={**RAMP, "start_value": -1.0},
        schedule_iters=10,
    ),
    loss("a negative `beta`", LOSS + "BinaryClassificationKD.beta is -1.0, expected a finite number >= 0.", beta=-1.0),
    loss(
        "a temperature of 0",
        LOSS + "SoftmaxClassificationKD.temperature is 0, expected a finite number > 0.",
        "SoftmaxClassificationKD",
        temperature=0,
    ),
    loss(
        "an infinite temperature",
        LOSS + "ChannelWiseKD.temperature is inf, expected a finite number > 0.",
        "ChannelWiseKD",
        temperature=float("inf"),
    ),
    loss(
        "a negative temperature of LD",
        LOSS + "LocalizationDistillation.temperature is -10.0, expected a finite number > 0.",
        "LocalizationDistillation",
        temperature=-10.0,
    ),
    loss(
        "an unknown `iou_type`",
        LOSS + "IoULocalizationKD.iou_type is 'ciou', expected one of giou, iou, neg_log_iou.",
        "IoULocalizationKD",
        iou_type="ciou",
    ),
    loss(
        "a crossed loss of features",
        LOSS + "FeatureImitation.source is 'crossed', which has no features: expected 'student'.",
        "FeatureImitation",
        source="crossed",
    ),
    loss(
        "a projector of one width",
        LOSS + "FeatureImitation.projector_channels is 8, expected the student's channels and the teacher's, "
        "such as [128, 256], or null.",
        "FeatureImitation",
        projector_channels=8,
    ),
    loss(
        "a projector of widths that are not the features'",
        LOSS + "FeatureImitation.projector_channels is [16, 8], but student (FCOS) has 8 channels and the "
        "teacher (FCOS) 8: set model.losses.NAME.projector_channels=[8, 8], or null.",
        "FeatureImitation",
        projector_channels=[16, 8],
    ),
    loss(
        "a region for a loss that has its own",
        LOSS + "TaskIntegrationKD.region is 'positives', expected none: the loss has its own regions.",
        "TaskIntegrationKD",
        region="positives",
    ),
    loss(
        "weights of regions that are not there",
        LOSS + "TaskIntegrationKD.region_weights is {'strong': 1.0}, expected a mapping of a number >= 0 for "
        "each of weak, key, rest.",
        "TaskIntegrationKD",
        region_weights=dict(strong=1.0),
    ),
    row(
        "centerness of a detector without",
        distill(
            "retinanet()", "retinanet()", "bckd", more="model.losses.mine = dict(_target_='d2kd.losses.CenternessKD')\n"
        ),
        LOSS + "CenternessKD needs centerness on both sides, but student (RetinaNet) does not and the teacher "
        "(RetinaNet) does not: take detectors that do (ATSS, FCOS), or set this loss to null.",
    ),
    called(
        "a kernel's function with a temperature of 0",
        "temperature_kl(torch.ones(2), torch.ones(2), temperature=0)",
        "d2kd train: temperature_kl.temperature is 0, expected a finite number > 0.",
    ),
    called(
        "a kernel's function with a negative temperature",
        "channel_wise_kd(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), temperature=-1.0)",
        "d2kd train: channel_wise_kd.temperature is -1.0, expected a finite number > 0.",
    ),
    called(
        "a kernel's function with tensors of two shapes",
        "temperature_kl(torch.ones(2), torch.ones(3), temperature=1.0)",
        "d2kd train: temperature_kl: student_logits and teacher_logits must have the same shape, found (2,) and (3,)",
    ),
    called(
        "a kernel's function with whole numbers",
        "binary_classification_kd(torch.ones(2, 3).long(), torch.ones(2, 3).long())",
        "d2kd train: binary_classification_kd: student_logits must be floating point, found torch.int64",
    ),
]
