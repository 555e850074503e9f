"""Distillation in configs: ``distill()`` for LazyConfigs, the keys of yacs configs, a teacher given by its own file."""

from d2kd.config.lazy import distill, get_config, get_detectron2_config
from d2kd.config.yacs import add_distillation_config

__all__ = ["add_distillation_config", "distill", "get_config", "get_detectron2_config"]
