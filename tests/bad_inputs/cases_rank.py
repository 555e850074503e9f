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
    case(
        "`--num-gpus 0`",
        "--num-gpus 0",
        "d2kd train: --num-gpus must be at least 1; without a GPU it is the number of CPU processes "
        "(d2kd train --help).",
    ),
    case(
        "`--num-gpus two`",
        "--num-gpus two",
        "d2kd train: argument --num-gpus: two is no whole number (d2kd train --help).",
    ),
    case(
        "`--num-machines 2` without `--dist-url`",
        "--num-machines 2",
        "d2kd train: --num-machines 2 needs --dist-url tcp://HOST:PORT, the same on all machines (d2kd train --help).",
    ),
    case(
        "`--machine-rank 2` of two machines",
        "--num-machines 2 --machine-rank 2 --dist-url tcp://10.0.0.1:5000",
        "d2kd train: --machine-rank 2 of --num-machines 2: expected a rank from 0 to one less than the "
        "number of machines (d2kd train --help).",
    ),
    case(
        "`--num-machines 0`",
        "--num-machines 0",
        "d2kd train: --machine-rank 0 of --num-machines 0: expected a rank from 0 to one less than the "
        "number of machines (d2kd train --help).",
    ),
    case(
        "a `--dist-url` that is a name",
        "--num-gpus 2 --dist-url localhost",
        "d2kd train: --dist-url is localhost, expected tcp://HOST:PORT, or auto on one machine (d2kd train --help).",
    ),
    case(
        "`RANK` without the others",
        "",
        "d2kd train: torchrun started this process, as its environment says, but WORLD_SIZE, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set: start it with torchrun, or unset RANK.",
        {"RANK": "0"},
    ),
    case(
        "torchrun without `MASTER_ADDR`",
        "",
        "d2kd train: torchrun started this process, as its environment says, but MASTER_ADDR is not set: "
        "start it with torchrun, or unset RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_PORT.",
        without(TORCHRUN, "MASTER_ADDR"),
    ),
    case(
        "`RANK=2` of `WORLD_SIZE=2`",
        "",
        "d2kd train: torchrun made this process rank 2 of 2, on its machine 0 of 2, which no process can "
        "be: start it anew.",
        {**TORCHRUN, "RANK": "2"},
    ),
    case(
        "`LOCAL_RANK=2` of `LOCAL_WORLD_SIZE=2`",
        "",
        "d2kd train: torchrun made this process rank 0 of 2, on its machine 2 of 2, which no process can "
        "be: start it anew.",
        {**TORCHRUN, "LOCAL_RANK": "2"},
    ),
    case(
        "`WORLD_SIZE=all`",
        "",
        "d2kd train: The environment variable WORLD_SIZE is 'all', expected a whole number.",
        {**TORCHRUN, "WORLD_SIZE": "all"},
    ),
    case(
        "torchrun and `--num-gpus 2`",
        "--num-gpus 2",
        "d2kd train: torchrun has started 2 processes, and --num-gpus and --num-machines ask for 2 from "
        "each of them: leave these two out.",
        TORCHRUN,
    ),
    case(
        "srun and `--num-gpus 4`",
        "--num-gpus 4",
        "d2kd train: srun has started 4 processes, and --num-gpus and --num-machines ask for 4 from each "
        "of them: leave these two out, or, in a batch script without srun, unset SLURM_PROCID.",
        SRUN,
    ),
    case(
        "srun with a part of its variables",
        "",
        "d2kd train: srun started this process, as its environment says, but SLURM_LOCALID is not set: "
        "start it with srun, or unset SLURM_PROCID, SLURM_NTASKS.",
        without(SRUN, "SLURM_LOCALID"),
    ),
    case(
        "srun with four processes on three nodes",
        "",
        "d2kd train: srun started 4 processes on 3 nodes, expected as many on each: give --ntasks-per-node.",
        {**SRUN, "SLURM_NNODES": "3"},
    ),
    case(
        "a batch that two processes cannot share",
        "--num-gpus 2 dataloader.train.total_batch_size=3",
        "d2kd train: dataloader.train.total_batch_size is 3, expected a multiple of the 2 processes of "
        "this run (--num-gpus, --num-machines).",
    ),
    case(
        "a file that the second of two processes lacks",
        "--num-gpus 2",
        "d2kd train: Rank 1: model.teacher.checkpoint is 'gone.pth', but there is no such file: train "
        "the teacher first or correct the path (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS).",
        None,
        ON_RANK_1,
    ),
]
