"""
Train or evaluate the model of a LazyConfig file, distilled or plain. Like Detectron2's
tools/lazyconfig_train_net.py, with a seed, CPU or GPU, mixed precision on both, gradient clipping, a teacher
that is checked, a data order that resumes, and the best checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from d2kd.checkpoint import WholeCheckpointer
from d2kd.cli import Parser, fail, is_users_error, run_command, sentence
from d2kd.config import ALONE, CONFIG, config_path, load_config
from d2kd.engine import (
    ConfigError,
    amp_dtype,
    check_config,
    check_run_folder,
    differences,
    do_eval,
    do_train,
    kept_record,
    launch_ranks,
    locked,
    ranks_of,
    resolve_device,
    start_logs,
    write_record,
)
from d2kd.modeling.distillation.agreement import raised_on_all_ranks

COMMAND = "d2kd train"
logger = logging.getLogger("d2kd.cli.train")  # also where this file is run with `python -m`

EXAMPLES = """
FILE is a path, or the name of a config that comes with d2kd, such as digits/fcos_crosskd.py.

Examples:

  Distil, then see what the teacher and the student reach:
    $ d2kd train --config-file digits/fcos_crosskd.py --check-teacher

  The same run without distillation, and with another method:
    $ d2kd train --config-file digits/fcos_crosskd.py --method alone train.output_dir=output/alone
    $ d2kd train --config-file digits/fcos_crosskd.py --method bckd train.output_dir=output/bckd

  On 8 GPUs, with torchrun or srun too; continue where it stopped; evaluate its best weights:
    $ d2kd train --config-file FILE --num-gpus 8
    $ torchrun --nproc-per-node 8 -m d2kd train --config-file FILE
    $ d2kd train --config-file FILE --num-gpus 8 --resume
    $ d2kd train --config-file FILE --eval-only train.init_checkpoint=output/model_best.pth

Options come before the overrides, key=value for a key of the config (or an argument that a node's target takes) and
+key=value for a new one. Without a GPU, --num-gpus is the number of CPU processes.
Overrides merge: model.losses=null switches distillation off, model.losses={} changes nothing.
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training options, and d2kd's own."""
    parser = Parser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, parents=[default_argument_parser()], add_help=False
    )
    parser.set_defaults(dist_url="auto")  # Detectron2's is one port for each user: two runs would meet on it
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoints and metrics of another run in train.output_dir"
    )
    parser.add_argument("--check-teacher", action="store_true", help="evaluate the teacher first and print its AP")
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors alone; log.txt has everything")
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="with --eval-only: evaluate weights that are no complete checkpoint of the model, the rest being random",
    )
    parser.add_argument(
        "--method",
        default=CONFIG,
        help=f"replace model.losses: a name of `d2kd methods`, {ALONE!r} for none (default: those of the config)",
    )
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One process of the run that the command line asks for."""
    with ExitStack() as stack:
        with raised_on_all_ranks():
            cfg = load_config(args.config_file, args.opts, method=args.method)
            check_config(cfg, resume=args.resume, evaluation=args.eval_only)
            if not args.eval_only:
                if comm.is_main_process():
                    stack.enter_context(locked(cfg.train.output_dir))
                check_run_folder(cfg, resume=args.resume, overwrite=args.overwrite)
        record = Path(cfg.train.output_dir, "config.yaml")
        goes_on = args.resume and WholeCheckpointer(nn.Module(), cfg.train.output_dir).has_checkpoint()
        before = stack.enter_context(kept_record(record)) if comm.is_main_process() else None
        console = start_logs(cfg, args, quiet=args.quiet)
        logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
        logger.info("Device: %s", _device(cfg))
        if args.eval_only:
            if before is not None:  # at once, since an evaluation may be killed
                write_record(record, before)
            return do_eval(cfg, resume=args.resume, check_teacher=args.check_teacher, allow_partial=args.allow_partial)
        if before is not None and goes_on:
            _warn_of_changes(before, record.read_text())
        return do_train(
            cfg, resume=args.resume, overwrite=args.overwrite, check_teacher=args.check_teacher, console=console
        )


def _device(cfg: DictConfig) -> str:
    """The device in words, with the processes and the precision."""
    device = resolve_device(cfg.train.device)
    name = f"{device} ({torch.cuda.get_device_name()})" if device.type == "cuda" else str(device)
    processes = "1 process" if comm.get_world_size() == 1 else f"{comm.get_world_size()} processes"
    dtype = str(amp_dtype(cfg.train.amp) or torch.float32).removeprefix("torch.")
    return f"{name}, {processes}, {dtype}"


def _warn_of_changes(before: str, now: str) -> None:
    """Say what of the config has changed since the run began, or was resumed the last time."""
    if changed := differences(before, now):
        logger.warning(
            "--resume with another config than the run had so far; new values hold from its last checkpoint on: %s.",
            "; ".join(changed[:20]) + (f"; and {len(changed) - 20} more" if len(changed) > 20 else ""),
        )


def _without_traceback(record: logging.LogRecord) -> bool:
    """A logging filter: what Detectron2 logs when an error stops training, a user's error without its traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and is_users_error(error):
        record.msg, record.args, record.exc_info = "Training stopped: %s", (error,), None
    return True


def _run_and_note(args: argparse.Namespace, notes: str) -> None:
    """
    :func:`run`; leaves a user's error and its traceback in the folder ``notes``: of a rank's error, ``launch`` keeps a
    text only.
    """
    try:
        run(args)
    except Exception as error:
        if is_users_error(error):
            note = json.dumps([sentence(error), traceback.format_exc()])
            Path(notes, f"rank{comm.get_rank():05}").write_text(note)
        raise


def _launch(args: argparse.Namespace) -> int:
    args.config_file = config_path(args.config_file)  # Detectron2's default_setup reads the file, too
    cfg = load_config(args.config_file, args.opts, method=args.method)
    minutes = OmegaConf.select(cfg, "train.ddp.timeout_minutes", default=30)
    images = OmegaConf.select(cfg, "dataloader.train.total_batch_size", default=None)
    processes = args.num_gpus * args.num_machines
    starts_them = not args.eval_only and ranks_of(os.environ) is None
    if starts_them and isinstance(images, int) and images % processes:
        raise ConfigError(
            f"dataloader.train.total_batch_size is {images}, expected a multiple of the {processes} processes of this "
            "run (--num-gpus, --num-machines)."
        )
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it lists the ranks that it ends
    with tempfile.TemporaryDirectory() as notes:
        try:
            launch_ranks(
                _run_and_note,
                args,
                notes,
                processes=args.num_gpus,
                machines=args.num_machines,
                machine_rank=args.machine_rank,
                url=args.dist_url,
                timeout=timedelta(minutes=minutes),
            )
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(str(error) or "--resume goes on from the last checkpoint.") from None
        except Exception:
            for note in sorted(Path(notes).iterdir()):
                if text := note.read_text():  # else its rank was ended while it wrote
                    said, trace = json.loads(text)
                    return fail(COMMAND, said, trace if "traceback" in args else "")
            raise
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if "--traceback" in args.opts:  # what people add at the end of a command that failed
        args.opts.remove("--traceback")
        args.traceback = True
    for opt in args.opts:
        if opt.startswith("-") or "=" not in opt:
            parser.error(f"{opt!r} is no key=value override; options come before the overrides")
    if not args.config_file:
        parser.error("--config-file FILE is required")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run that --overwrite deletes: give one of them")
    if args.allow_partial and not args.eval_only:
        parser.error("--allow-partial is for --eval-only: training takes weights that fit in part without it")
    if args.num_gpus < 1:
        parser.error("--num-gpus must be at least 1; without a GPU it is the number of CPU processes")
    if args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: expected a rank from 0 to one "
            "less than the number of machines"
        )
    if args.dist_url != "auto" and "://" not in args.dist_url:
        parser.error(f"--dist-url is {args.dist_url}, expected tcp://HOST:PORT, or auto on one machine")
    gpus = torch.cuda.device_count()
    if gpus and args.num_gpus > gpus:
        parser.error(f"--num-gpus {args.num_gpus}, but this machine has {gpus}")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error(f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, the same on all machines")
    return run_command(COMMAND, _launch, args)


if __name__ == "__main__":
    raise SystemExit(main())
