"""What d2kd check prints and writes: what was measured of a distilled model, beside its teacher's knowledge."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from d2kd.cli.check_measure import TERM_BATCHES, Cost, Term
from d2kd.modeling import DistilledDetector, get_adapter
from d2kd.modeling.detectors.interface import make_anchors, strides_of
from d2kd.modeling.distillation.examination import LEAST_OBJECTS, Examination, Verdict
from d2kd.modeling.distillation.health import FAR

__all__ = ["Report", "to_text"]


@dataclass
class Report:
    config_file: str
    model: DistilledDetector
    examination: Examination
    verdict: Verdict
    terms: Mapping[str, Term]
    cost: Cost
    names: Sequence[str] | None

    def figures(self) -> dict[str, Any]:
        """All of it, for a JSON file."""
        examination, verdict = self.examination, self.verdict
        return {
            "config": self.config_file,
            "pair": dict(describe_pair(self.model)),
            "preflight": {
                "images": examination.num_images,
                "teacher": examination.figures(examination.teacher),
                "student": examination.figures(examination.student),
                "gap": examination.gap,
                "confusion": examination.teacher.votes(len(examination.teacher_classes)).tolist(),
                "other_pixels": {
                    " ".join(setting.beside(examination.present)): examination.figures(knowledge)
                    for setting, (knowledge, _) in examination.others.items()
                },
                "stop": verdict.stop,
                "warnings": verdict.warnings,
            },
            "terms": {name: asdict(term) for name, term in self.terms.items()},
            "cost": {**asdict(self.cost), "hours": self.cost.hours},
            "verdict": self.lines(),
        }

    def lines(self) -> list[str]:
        """The verdict, in five lines."""
        examination, verdict, cost = self.examination, self.verdict, self.cost
        known = examination.figures(examination.teacher)
        if verdict.stop:
            teacher = verdict.stop
        elif verdict.warnings:
            teacher = " ".join(verdict.warnings)
        elif known["objects"] < LEAST_OBJECTS:
            teacher = verdict.summary
        else:
            right, found = f"{known['right']:.2f} of {known['objects']} objects right", f"{known['recall']:.2f} found"
            teacher = f"knows this data: {right}, {found}."
        end = "do not train with this teacher." if verdict.stop else "go." if not verdict.warnings else "look first."
        return [
            f"Teacher: {teacher}",
            f"Student: {self._student()}",
            f"Terms:   {self._terms()}",
            f"Cost:    a step takes {cost.seconds:.2f} s, {cost.seconds / cost.baseline_seconds:.1f} times one without "
            f"a teacher; {cost.iterations} of them, with their data, {_duration(cost.hours)}.",
            f"Verdict: {end}",
        ]

    def _student(self) -> str:
        ours, theirs = (self.examination.figures(x) for x in (self.examination.student, self.examination.teacher))
        if not ours["objects"]:
            return "has no location that answers for one of the objects."
        return (
            f"gives {ours['right']:.2f} of the objects the right class and finds {ours['recall']:.2f}, the teacher "
            f"{theirs['right']:.2f} and {theirs['recall']:.2f}: "
            + ("the rest is to be learnt." if ours["score"] < theirs["score"] else "it has nothing to learn from it.")
        )

    def _terms(self) -> str:
        shares = {k: x.gradient_share for k, x in self.terms.items() if x.gradient_share is not None}
        if not shares:
            return "their gradients could not be measured."
        still = [name for name, share in shares.items() if share == 0]
        if still:
            return f"{', '.join(still)} {'does' if len(still) == 1 else 'do'} not pull: see the regions in the picture."
        far = {name: share for name, share in shares.items() if not 1 / FAR <= share <= FAR}
        if far:
            told = [
                f"{x} {y:.2g} times (equal at weight {self.model.losses[x].weight / y:.2g})" for x, y in far.items()
            ]
            return f"far from the detection losses' gradient: {', '.join(told)}."
        return f"pull with {_range(shares.values())} times the detection losses' gradient."


def describe_pair(model: DistilledDetector) -> list[tuple[str, tuple[str, ...]]]:
    """What the two detectors are: rows of (what, (student's, teacher's)); alike for both where they share it."""
    teacher = model.teacher
    if teacher is None:
        return []
    both = (model.student, teacher.detector)
    overlap = model.overlap
    specs = [get_adapter(x).describe(x) for x in both]
    parameters = [sum(p.numel() for p in model.student.parameters()), teacher.num_parameters]
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("detector", tuple(type(x).__name__ for x in both)),
        ("parameters", tuple(f"{x / 1e6:.2f} M" for x in parameters)),
        ("strides", tuple(", ".join(map(str, strides_of(x))) for x in both)),
        ("anchors a cell", tuple(str(_anchors_per_cell(x)) for x in both)),
        ("classes", tuple(str(spec.num_classes) for spec in specs)),
        ("box coding", tuple("distributions" if spec.bins else "deltas" for spec in specs)),
        ("FPN channels", tuple(str(spec.feature_channels) for spec in specs)),
        ("images", (model.input_format, teacher.input_format)),
    ]
    levels, classes = overlap.student_levels, overlap.student_classes
    common = "all" if classes is None else str(len(classes))
    rows.append(("in common", (f"{len(levels)} levels", f"{common} classes")))
    rows.append(("same anchors", (overlap.anchor_difference or "yes",)))
    projectors = [name for name, x in model.distillation.named_modules() if isinstance(x, nn.Conv2d)]
    rows.append(("projectors", (", ".join(projectors) or "none",)))
    return rows


def _anchors_per_cell(detector: DenseDetector) -> int:
    maps = [torch.zeros(1, 1, 1, 1, device=detector.device) for _ in detector.head_in_features]
    return len(make_anchors(detector, maps)[0])


def to_text(report: Report) -> str:
    """The report as it is printed."""
    examination, cost = report.examination, report.cost
    ours, theirs = (examination.figures(x) for x in (examination.student, examination.teacher))
    known = {
        "objects with the right class": ("right", "right_by_chance"),
        "mean score of that class": ("score", ""),
        "score above the background's": ("contrast", ""),
        "found (IoU 0.5, score 0.05)": ("recall", ""),
    }
    lines = ["The pair", *_columns("", "student", "teacher")]
    for what, values in describe_pair(report.model):
        lines += _columns(what, *values)
    lines += ["", f"What they know of {examination.num_images} training images with {theirs['objects']} objects"]
    lines += _columns("", "student", "teacher", "by chance")
    for what, (key, chance) in known.items():
        by_chance = f"{theirs[chance]:.2f}" if chance else "0.50" if key == "contrast" else ""
        lines += _columns(what, f"{ours[key]:.2f}", f"{theirs[key]:.2f}", by_chance)
    lines += _columns("gap of their scores", f"{examination.gap:.2f}", "")
    lines += [f"  The teacher takes {x}." for x in _confusions(report)]
    lines += ["", f"The terms, in {TERM_BATCHES} batches (gradient at the student's FPN outputs, detection's being 1)"]
    lines += _columns("", "value", "gradient")
    for name, term in report.terms.items():
        share = "" if term.gradient_share is None else f"{term.gradient_share:.3g}"
        lines += _columns(name, f"{term.value:.3g}", share)
    megabytes = [f"{x / 2**20:.0f} MB" for x in (cost.baseline_peak_bytes, cost.peak_bytes)]
    lines += ["", "A step (forward and backward)", *_columns("", "alone", "distilled")]
    lines += _columns("seconds", f"{cost.baseline_seconds:.3f}", f"{cost.seconds:.3f}")
    lines += _columns("peak memory above weights", *megabytes)
    if cost.data_seconds:
        lines += _columns("its data, without workers", *2 * [f"{cost.data_seconds:.3f}"])
    return "\n".join(line.rstrip() for line in [*lines, "", *report.lines()])


def _columns(what: str, *values: str) -> list[str]:
    return [f"  {what:32}" + "".join(f"{value:>20}" for value in values)]


def _confusions(report: Report) -> list[str]:
    """The commonest mistakes of the teacher, those of at least two objects."""
    examination = report.examination
    votes = examination.teacher.votes(len(examination.teacher_classes))
    mistakes = []
    for row, column in enumerate(examination.teacher_classes):
        for other, count in enumerate(votes[row].tolist()):
            if other != column and count >= 2:
                mistakes.append((count, row, other))
    student_ids = dict(zip(examination.teacher_classes, examination.student_classes))

    def name(number: int | None, other: int | None = None) -> str:
        if number is None:
            return f"its own class {other}"
        return f"{report.names[number]} ({number})" if report.names else f"class {number}"

    return [
        f"{name(examination.student_classes[row])} for {name(student_ids.get(other), other)} in {count:.0f} of "
        f"{votes[row].sum():.0f} objects"
        for count, row, other in sorted(mistakes, reverse=True)[:5]
    ]


def _range(values: Collection[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"
