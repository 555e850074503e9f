"""Several processes of one run, real ones: who starts them, what they tell one another, how they end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from d2kd.engine import ranks_of
from tests.processes import Command

ROOT = Path(__file__).parents[2]
CONFIG = str(Path(__file__).with_name("tiny_retinanet.py"))
TRAIN = ["train", "--config-file"]
#: The tiny run, whose mapper runs ``fault(n)`` for the n-th image of a process.
FAULTY = """
import os, signal, time
from detectron2.config import LazyConfig
from detectron2.utils import comm

_tiny = LazyConfig.load("{config}")
model, optimizer, lr_multiplier, dataloader, train = (
    _tiny[key] for key in ("model", "optimizer", "lr_multiplier", "dataloader", "train")
)

class Faulty:
    def __init__(self, mapper):
        self.mapper, self.seen = mapper, 0

    def __call__(self, item):
        self.seen += 1
        {fault}
        return self.mapper(item)

dataloader.train.num_workers = 0
dataloader.train.mapper = dict(_target_=Faulty, mapper=dataloader.train.mapper)
train.update(max_iter=1000, eval_period=0)
"""


def faulty(tmp_path, fault):
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY.format(config=CONFIG, fault=fault))
    return str(path)


def variables(**ours):
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    return {**outer, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **ours}


def start(*arguments, **environ):
    return Command(*arguments, environ=variables(**environ))


def torchrun(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=variables(), stdout=pipe, stderr=pipe, text=True)


def free_port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def task(rank, port):
    """What srun tells one of two tasks on one node."""
    return dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NTASKS="2", MASTER_PORT=str(port))


def wait_for(path, text, process):
    """Until ``text`` stands in the file."""
    for _ in range(600):
        if path.is_file() and text in path.read_text():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    raise AssertionError(f"{path} never said {text!r}")


def iterations(output):
    return [json.loads(line)["iteration"] for line in (output / "metrics.json").read_text().splitlines()]


def weights(output):
    return torch.load(output / "model_final.pth")["model"]


def test_the_variables_of_torchrun_and_srun():
    torchrun = dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="7")
    ranks = ranks_of(torchrun)
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.local_size, ranks.url) == (3, 4, 1, 2, "env://")
    srun = dict(SLURM_PROCID="3", SLURM_NTASKS="4", SLURM_LOCALID="1", SLURM_NNODES="2", SLURM_JOB_ID="20007")
    for nodes, first in (("gpu[003-004]", "gpu003"), ("cpu7,gpu[01,3]", "cpu7"), ("n[1,5]", "n1")):
        ranks = ranks_of({**srun, "SLURM_JOB_NODELIST": nodes})
        assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.local_size) == (3, 4, 1, 2)
        assert ranks.url == f"tcp://{first}:15007"
    assert ranks_of({**srun, "MASTER_ADDR": "h", "MASTER_PORT": "9"}).url == "tcp://h:9"
    assert ranks_of({**srun, "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n3"}).url == "tcp://127.0.0.1:15007"
    assert ranks_of({}) is None
    assert (
        ranks_of({**srun, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NNODES": "1", "SLURM_LOCALID": "0"})
        is None
    )
    # A batch script without srun: alone, if SLURM was asked for nothing.
    assert ranks_of(dict(SLURM_JOB_ID="7", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NNODES="1")) is None
    # Two steps of one job meet at two places.
    assert ranks_of({**srun, "MASTER_ADDR": "h", "SLURM_STEP_ID": "1"}).url == "tcp://h:15108"
    for environ, message in (
        ({"RANK": "0"}, "torchrun started this process.*WORLD_SIZE, LOCAL_RANK.* is not set"),
        ({**torchrun, "RANK": "x"}, "RANK is 'x', expected a whole number"),
        ({**torchrun, "RANK": "4"}, "rank 4 of 4"),
        ({**srun, "SLURM_NTASKS": "5"}, "5 processes on 2 nodes"),
        (srun, "SLURM_JOB_NODELIST is not set: set MASTER_ADDR"),
    ):
        with pytest.raises(ValueError, match=message):
            ranks_of(environ)


def test_torchrun_and_srun_train_one_run_together(tmp_path):
    short = ["train.max_iter=2", "train.eval_period=0"]
    one, srun = tmp_path / "torchrun", tmp_path / "srun"
    done = torchrun(
        "--nproc-per-node=2", "--standalone", "-m", "d2kd", *TRAIN, CONFIG, *short, f"train.output_dir={one}"
    )
    port = free_port()
    tasks = [start(*TRAIN, CONFIG, *short, f"train.output_dir={srun}", **task(i, port)) for i in range(2)]
    for process in (done, *tasks):
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 0, stderr
    for output in (one, srun):
        assert iterations(output) == [0, 1, 2]
        assert "World size: 2" in (output / "log.txt").read_text() and (output / "log.txt.rank1").is_file()
    assert all(torch.equal(value, weights(srun)[key]) for key, value in weights(one).items())


def test_processes_of_processes_are_refused(tmp_path):
    environ = dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_ADDR="h", MASTER_PORT="1")
    process = start(*TRAIN, CONFIG, "--num-gpus=2", f"train.output_dir={tmp_path}", **environ)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith("d2kd train: torchrun has started 2 processes, and --num-gpus and")
    assert "Traceback" not in stderr


def test_a_folder_has_one_live_run(tmp_path):
    output = tmp_path / "output"
    slow = faulty(tmp_path, "time.sleep(0.5)")
    first = start(*TRAIN, slow, f"train.output_dir={output}")
    try:
        wait_for(output / "log.txt", "Starting training", first)
        before = (output / "config.yaml").read_text()
        second = start(*TRAIN, CONFIG, f"train.output_dir={output}")
        stderr = second.communicate(timeout=300)[1]
        assert second.returncode == 2 and "Traceback" not in stderr
        assert f"train.output_dir={output} is in use by another run (process {first.pid} on " in stderr.splitlines()[-1]
        assert (output / "config.yaml").read_text() == before
    finally:
        first.kill()
        first.communicate()
    third = start(
        *TRAIN, CONFIG, "--overwrite", f"train.output_dir={output}", "train.max_iter=1", "train.eval_period=0"
    )
    stderr = third.communicate(timeout=300)[1]
    assert third.returncode == 0, stderr


@pytest.fixture
def unreadable(tmp_path, monkeypatch):
    """The tiny run, with one file of its images cut short."""
    folder = tmp_path / "images"
    shutil.copytree(os.environ["TINY_DATASET"], folder)
    monkeypatch.setenv("TINY_DATASET", str(folder))
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:200])
    return CONFIG


@pytest.mark.parametrize("launcher", ["--num-gpus", "--num-machines", "torchrun", "srun"])
def test_an_unreadable_image_ends_all_ranks_in_its_sentence(tmp_path, unreadable, launcher):
    """Also those that nothing ends from outside: of two machines, and of srun without --kill-on-bad-exit."""
    port = free_port()
    run = [*TRAIN, unreadable]
    rest = [f"train.output_dir={tmp_path / 'output'}", "train.eval_period=0", "dataloader.train.num_workers=1"]
    if launcher == "--num-gpus":
        processes = [start(*run, "--num-gpus=2", *rest)]
    elif launcher == "--num-machines":
        machines = ["--num-machines=2", f"--dist-url=tcp://127.0.0.1:{port}"]
        processes = [start(*run, *machines, f"--machine-rank={i}", *rest) for i in range(2)]
    elif launcher == "torchrun":
        machines = ["--nnodes=2", "--nproc-per-node=1", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d"]
        processes = [torchrun(*machines, "-m", "d2kd", *run, *rest) for _ in range(2)]
    else:
        processes = [start(*run, *rest, **task(i, port)) for i in range(2)]
    ended = [process.communicate(timeout=300)[1] for process in processes]
    sentence = "dataloader.train.mapper cannot read entry 5 of dataloader.train.dataset ("
    for stderr in ended:
        (said,) = {line for line in stderr.splitlines() if line.startswith("d2kd train: ")} or [None]
        assert said is not None, stderr
        assert re.match(rf"d2kd train: (Rank [01]: )?{re.escape(sentence)}.*5\.png\): ", said)
        assert "Error: " in said and "correct the entry, leave it out, or set dataloader.train.on_error=skip" in said
    assert all(process.returncode for process in processes)


def test_a_rank_that_hangs_is_waited_for_as_long_as_the_config_says(tmp_path):
    output = tmp_path / "output"
    fault = "if comm.get_rank() == 1 and self.seen > 4: os.kill(os.getpid(), signal.SIGSTOP)"
    process = start(
        *TRAIN, faulty(tmp_path, fault), "--num-gpus=2", f"train.output_dir={output}", "train.ddp.timeout_minutes=0.1"
    )
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert "d2kd train: Rank 0 waited in iteration 2 for another rank" in stderr.splitlines()[-1]


def saved(output):
    """How many iterations the last checkpoint of a run has."""
    return torch.load(output / (output / "last_checkpoint").read_text())["iteration"] + 1


@pytest.mark.parametrize(
    "target, number",
    [("launcher", signal.SIGINT), ("launcher", signal.SIGTERM), ("group", signal.SIGTERM), ("rank", signal.SIGINT)],
)
def test_a_signal_ends_all_ranks_after_a_checkpoint(tmp_path, number, target):
    output = tmp_path / "output"
    slow = faulty(tmp_path, f"time.sleep(0.05); open(os.path.join({str(tmp_path)!r}, f'{{os.getpid()}}.pid'), 'w')")
    process = start(*TRAIN, slow, "--num-gpus=2", f"train.output_dir={output}")
    wait_for(output / "log.txt", "Starting training", process)
    while len(list(tmp_path.glob("*.pid"))) < 2:
        time.sleep(0.1)
    ranks = [int(path.stem) for path in tmp_path.glob("*.pid")]
    {"launcher": os.kill, "group": os.killpg, "rank": os.kill}[target](
        ranks[0] if target == "rank" else process.pid, number
    )
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if target == "rank" else 128 + number) and "Traceback" not in stderr
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)
    assert saved(output) == iterations(output)[-1] + 1
    if process.returncode == 130:
        assert f"d2kd train: interrupted. Iteration {saved(output) - 1} is saved: --resume" in stderr


def test_a_signal_to_the_group_in_an_evaluation_loses_no_step(tmp_path):
    output = tmp_path / "output"
    slow = faulty(tmp_path, "pass")
    Path(slow).write_text(
        Path(slow).read_text()
        + """
class Slow(Faulty):
    def __call__(self, item):
        open("{started}", "w")
        time.sleep(0.5)
        return self.mapper(item)

dataloader.test.update(num_workers=0, mapper=dict(_target_=Slow, mapper=dataloader.test.mapper))
""".replace("{started}", str(tmp_path / "started"))
    )
    process = start(*TRAIN, slow, "--num-gpus=2", f"train.output_dir={output}", "train.eval_period=3")
    wait_for(tmp_path / "started", "", process)
    os.killpg(process.pid, signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert "Traceback" not in stderr and saved(output) == 3


def test_workers_outlive_a_signal_to_the_group(tmp_path):
    """A process of its own, since it forks its workers; a server for them would get the signal, too."""
    output = tmp_path / "output"
    slow = faulty(tmp_path, "time.sleep(0.3)")
    command = [
        sys.executable,
        "-m",
        "d2kd",
        *TRAIN,
        slow,
        f"train.output_dir={output}",
        "dataloader.train.num_workers=2",
    ]
    process = subprocess.Popen(command, env=variables(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(output / "metrics.json", "total_loss", process)
    os.killpg(process.pid, signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in stderr
    assert saved(output) == iterations(output)[-1] + 1
