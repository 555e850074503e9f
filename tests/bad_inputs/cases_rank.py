"""Processes that do not fit together: options, and what torchrun and srun say in the environment."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES"]

TORCHRUN = dict(
    RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500"
)
SRUN = dict(SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_LOCALID="0", SLURM_NNODES="1", SLURM_JOB_NODELIST="gpu1")


def case(given: str, arguments: str, says: str, environ: dict[str, str] | None = None, more: str = "") -> BadInput:
    """``d2kd train`` with these arguments and variables of the environment, which the test takes back."""

    def make(folder: Path) -> list[str]:
        os.environ.update(environ or {})
        return ["train", "--config-file", write_run(folder, more), *arguments.split()]

    return BadInput("Ranks", given, make, says)


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


#: At the end of a config: the file of the images is gone for the second process alone.
ON_RANK_1 = """
from detectron2.utils import comm
if comm.get_rank() == 1:
    model.teacher.checkpoint = "gone.pth"
"""

CASES = [
    case("`--num-gpus 0`", "--num-gpus 0", "?"),
    case("`--num-gpus two`", "--num-gpus two", "?"),
    case("`--num-machines 2` without `--dist-url`", "--num-machines 2", "?"),
    case("`--machine-rank 2` of two machines", "--num-machines 2 --machine-rank 2 --dist-url tcp://10.0.0.1:5000", "?"),
    case("`--num-machines 0`", "--num-machines 0", "?"),
    case("a `--dist-url` that is a name", "--num-gpus 2 --dist-url localhost", "?"),
    case("`RANK` without the others", "", "?", {"RANK": "0"}),
    case("torchrun without `MASTER_ADDR`", "", "?", without(TORCHRUN, "MASTER_ADDR")),
    case("`RANK=2` of `WORLD_SIZE=2`", "", "?", {**TORCHRUN, "RANK": "2"}),
    case("`LOCAL_RANK=2` of `LOCAL_WORLD_SIZE=2`", "", "?", {**TORCHRUN, "LOCAL_RANK": "2"}),
    case("`WORLD_SIZE=all`", "", "?", {**TORCHRUN, "WORLD_SIZE": "all"}),
    case("torchrun and `--num-gpus 2`", "--num-gpus 2", "?", TORCHRUN),
    case("srun and `--num-gpus 4`", "--num-gpus 4", "?", SRUN),
    case("srun with a part of its variables", "", "?", without(SRUN, "SLURM_LOCALID")),
    case("srun with four processes on three nodes", "", "?", {**SRUN, "SLURM_NNODES": "3"}),
    case("a batch that two processes cannot share", "--num-gpus 2 dataloader.train.total_batch_size=1", "?"),
    case("a file that the second of two processes lacks", "--num-gpus 2", "?", None, ON_RANK_1),
]
