"""What torch wraps around whole modules, and d2kd cannot run in."""

from __future__ import annotations

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch.distributed.fsdp import FSDPModule

__all__ = ["NO_REPLICAS", "check_shards"]

NO_REPLICAS = (
    "DistilledDetector does not run in torch.nn.DataParallel, whose threads would share the student: use "
    "DistributedDataParallel, one process for each GPU (d2kd train --num-gpus N)."
)


def check_shards(student: DenseDetector, teacher: DenseDetector | None) -> None:
    """
    Raises:
        TypeError: one of the detectors itself was given to ``fully_shard``, which gathers parameters around
            ``forward``: d2kd calls that of its backbone and head alone.
    """
    instead = "call it for the DistilledDetector", "call it for the teacher's backbone and for its head"
    for who, detector, advice in zip(("student", "teacher"), (student, teacher), instead):
        if isinstance(detector, FSDPModule):
            raise TypeError(
                f"The {who} as a whole was given to torch's fully_shard, but d2kd calls its backbone and head, whose "
                f"parameters would stay in shards: {advice}."
            )
