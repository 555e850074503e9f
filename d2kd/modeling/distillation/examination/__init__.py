"""What a teacher knows of labelled images: measured once at the beginning of a run, and by ``d2kd check``."""

from d2kd.modeling.distillation.examination.images import Examination, examine
from d2kd.modeling.distillation.examination.knowledge import Knowledge
from d2kd.modeling.distillation.examination.verdict import LEAST_OBJECTS, Verdict, judge

__all__ = ["LEAST_OBJECTS", "Examination", "Knowledge", "Verdict", "examine", "judge"]
