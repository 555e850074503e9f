"""The small FCOS on a backbone of half its width: a student limited by its capacity."""

from .digits_backbone import small_student_backbone
from .digits_fcos import model

model.backbone = small_student_backbone
