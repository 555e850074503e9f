"""The embedded benchmark ``digits``: see :mod:`d2kd.data.digits.dataset`."""

from d2kd.data.digits.dataset import DATASET_VERSION, SEED, SIZES, get_digits, prepare_digits, register_digits

__all__ = ["DATASET_VERSION", "SEED", "SIZES", "get_digits", "prepare_digits", "register_digits"]
