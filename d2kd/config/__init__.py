"""Distillation in configs: ``distill()`` for LazyConfigs, the keys of yacs configs, a teacher given by its own file."""

from d2kd.config.files import config_path, get_config, get_detectron2_config, load_config
from d2kd.config.lazy import ALONE, CONFIG, distill, with_method
from d2kd.config.yacs import add_distillation_config

__all__ = [
    "ALONE",
    "CONFIG",
    "add_distillation_config",
    "config_path",
    "distill",
    "get_config",
    "get_detectron2_config",
    "load_config",
    "with_method",
]
