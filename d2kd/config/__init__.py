"""Distillation in configs: ``distill()`` for LazyConfigs, keys for yacs configs, a teacher given by its own file."""

from d2kd.config.lazy import distill, get_config, get_detectron2_config, preset_families
from d2kd.config.teacher_file import build_registered, build_teacher, teacher_node
from d2kd.config.yacs import add_distillation_config, constructor_arguments

__all__ = [
    "add_distillation_config",
    "build_registered",
    "build_teacher",
    "constructor_arguments",
    "distill",
    "get_config",
    "get_detectron2_config",
    "preset_families",
    "teacher_node",
]
