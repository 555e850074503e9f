"""One training step: a student that learns from its labels and from a teacher."""

from d2kd.modeling.distillation.distilled_detector import DistilledDetector
from d2kd.modeling.distillation.plain import student
from d2kd.modeling.distillation.teacher import Teacher

__all__ = ["DistilledDetector", "Teacher", "student"]
