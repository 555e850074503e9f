"""Public data sets of real photographs: see :mod:`d2kd.data.public.dataset`."""

from d2kd.data.public.dataset import get_public_data, public_root, register_public_data
from d2kd.data.public.preparation import prepare_public_data
from d2kd.data.public.sets import SETS, SPLITS, PublicSet

__all__ = [
    "SETS",
    "SPLITS",
    "PublicSet",
    "get_public_data",
    "prepare_public_data",
    "public_root",
    "register_public_data",
]
