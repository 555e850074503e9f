"""
Train or evaluate the model of a LazyConfig file, distilled or plain. Like Detectron2's
tools/lazyconfig_train_net.py, with a seed, CPU or GPU, mixed precision on both, gradient clipping, a teacher
that is checked, a data order that resumes, and the best checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2kd.cli import fail
from d2kd.engine import ConfigError, check_config, do_eval, do_train, resolve_device
from d2kd.methods import list_methods

logger = logging.getLogger("d2kd.cli.train")  # also where this file is run with `python -m`

EXAMPLES = """
Examples:

  Distil, then see what the teacher and the student reach:
    $ python tools/train_net.py --config-file configs/digits/fcos_crosskd.py --check-teacher

  The same run without distillation (`model.losses={}` would merge, and change nothing):
    $ python tools/train_net.py --config-file configs/digits/fcos_crosskd.py model.losses=null train.output_dir=output/a

  On 8 GPUs; continue where it stopped; evaluate its best weights:
    $ python tools/train_net.py --config-file FILE --num-gpus 8
    $ python tools/train_net.py --config-file FILE --num-gpus 8 --resume
    $ python tools/train_net.py --config-file FILE --eval-only train.init_checkpoint=output/model_best.pth

Options come before the key=value overrides. Without a GPU, --num-gpus is the number of CPU processes.
"""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One process of the run that the command line asks for."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    check_config(cfg, resume=args.resume)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="d2kd")
    logger.info("Device: %s", resolve_device(cfg.train.device))
    return (do_eval if args.eval_only else do_train)(cfg, resume=args.resume, check_teacher=args.check_teacher)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training options, ``--check-teacher`` and ``--list-methods``."""
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    parser.add_argument("--check-teacher", action="store_true", help="evaluate the teacher first and print its AP")
    parser.add_argument("--list-methods", action="store_true", help="print the methods of distill(), and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if args.list_methods:
        list_methods()
        return 0
    if not os.path.isfile(args.config_file):
        parser.error(f"--config-file {args.config_file!r}: no such file")
    for opt in args.opts:
        if opt.startswith("-") or "=" not in opt:
            parser.error(f"{opt!r} is no key=value override; options come before the overrides")
    gpus = torch.cuda.device_count()
    if gpus and args.num_gpus > gpus:
        parser.error(f"--num-gpus {args.num_gpus}, but this machine has {gpus}")
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except (ConfigError, FileNotFoundError) as e:
        return fail("train_net.py", e)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
