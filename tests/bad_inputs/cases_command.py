"""Wrong commands, and wrong options of ``d2kd train`` and ``d2kd check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from d2kd.__main__ import COMMANDS
from d2kd.methods import METHODS
from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES", "case", "nothing"]


def case(given: str, arguments: str, says: str, prepare: Callable[[Path], object] = write_run) -> BadInput:
    """``arguments`` as they are typed; what ``prepare`` writes is there before: the config mine.py by default."""

    def make(folder: Path) -> list[str]:
        prepare(folder)
        return arguments.split()

    return BadInput("Command line", given, make, says)


def nothing(folder: Path) -> None:
    """The command reads no files."""


def saved_step(folder: Path) -> None:
    """A step of a model with one weight."""
    write_run(folder)
    step = {"batch": [], "weights": {"w": torch.zeros(1)}, "iteration": 7, "rank": 0, "error": "Not finite: loss."}
    torch.save(step, folder / "step.pth")


CASES = [
    case("no command", "", f"d2kd: no command is given; expected one of {', '.join(COMMANDS)}.", nothing),
    case("a misspelt command", "trian", "d2kd: there is no command 'trian'; did you mean train?", nothing),
    case(
        "a word that is no command",
        "distil",
        f"d2kd: there is no command 'distil'; expected one of {', '.join(COMMANDS)}.",
        nothing,
    ),
    case("no config", "train", "d2kd train: --config-file FILE is required (d2kd train --help).", nothing),
    case(
        "a misspelt name of a packaged config",
        "train --config-file digits/fcos_croskd.py",
        "d2kd train: There is no file 'digits/fcos_croskd.py', and d2kd has no config of that name; did "
        "you mean digits/fcos_crosskd.py or digits/fcos_bckd.py or digits/fcos_crosskd_pkd.py?",
        nothing,
    ),
    case(
        "a config without `--config-file`",
        "train mine.py",
        "d2kd train: 'mine.py' is no key=value override; options come before the overrides (d2kd train --help).",
    ),
    case(
        "a misspelt option",
        "train --config-fiel mine.py",
        "d2kd train: unrecognized arguments: --config-fiel (d2kd train --help).",
    ),
    case(
        "an option after the overrides",
        "train --config-file mine.py train.max_iter=3 --resume",
        "d2kd train: '--resume' is no key=value override; options come before the overrides (d2kd train --help).",
    ),
    case(
        "`--resume` and `--overwrite`",
        "train --config-file mine.py --resume --overwrite",
        "d2kd train: --resume goes on with a run that --overwrite deletes: give one of them (d2kd train --help).",
    ),
    case(
        "`--allow-partial` for training",
        "train --config-file mine.py --allow-partial",
        "d2kd train: --allow-partial is for --eval-only: training takes weights that fit in part without "
        "it (d2kd train --help).",
    ),
    case(
        "`--eval-only` without weights",
        "train --config-file mine.py --eval-only",
        "d2kd train: train.init_checkpoint is empty, expected the weights to evaluate: add "
        "train.init_checkpoint=PATH, or --resume for the last checkpoint in "
        "train.output_dir={folder}/output.",
    ),
    case(
        "`--eval-only` of weights that are not there",
        "train --config-file mine.py --eval-only train.init_checkpoint=best.pth",
        "d2kd train: train.init_checkpoint is 'best.pth', but there is no such file.",
    ),
    case(
        "a misspelt method",
        "train --config-file mine.py --method croskd",
        f"d2kd train: Unknown method 'croskd', expected one of {', '.join(METHODS)}; did you mean crosskd "
        "or crosskd_pkd or bckd?",
    ),
    case(
        "`--check-teacher` of a run without one",
        "train --config-file mine.py --method alone --check-teacher",
        "d2kd train: There is no teacher to check (--check-teacher), expected a model.teacher and at "
        "least one of model.losses.",
    ),
    case(
        "`d2kd check` without a config",
        "check",
        "d2kd check: --config-file FILE is required, or --device (d2kd check --help).",
        nothing,
    ),
    case(
        "`d2kd check` of no batches",
        "check --config-file mine.py --batches 0",
        "d2kd check: --batches is 0, expected at least 1.",
    ),
    case(
        "`d2kd check` of a student alone",
        "check --config-file mine.py --method alone",
        "d2kd check: mine.py has no teacher and losses to check: take a distilled config (d2kd.distill), "
        "or add --method NAME.",
    ),
    case(
        "`d2kd check --json` with a folder",
        "check --config-file mine.py --json images",
        "d2kd check: --json images is a folder, expected the name of a file.",
    ),
    case(
        "`d2kd check --replay` of no file",
        "check --config-file mine.py --replay step.pth",
        "d2kd check: There is no file 'step.pth' to replay.",
    ),
    case(
        "`d2kd check --replay` of a text",
        "check --config-file mine.py --replay birds.json",
        "d2kd check: birds.json is no saved step, expected a file non_finite_iterN_rankR.pth of a run's output_dir.",
    ),
    case(
        "`d2kd check --replay` of a checkpoint",
        "check --config-file mine.py --replay teacher.pth",
        "d2kd check: teacher.pth is no saved step, expected a file non_finite_iterN_rankR.pth of a run's output_dir.",
    ),
    case(
        "`d2kd check --replay` of another model's step",
        "check --config-file mine.py --replay step.pth model.losses=null",
        "d2kd check: step.pth has weights of another model than mine.py: 97 differ (first "
        "'backbone.fpn_lateral3.weight'), so give the config of the run, train.output_dir/config.yaml.",
        saved_step,
    ),
    case(
        "`d2kd check-adapter` without a config",
        "check-adapter",
        "d2kd check-adapter: the following arguments are required: --config-file (d2kd check-adapter --help).",
        nothing,
    ),
    case(
        "`d2kd check-adapter` of a misspelt override",
        "check-adapter --config-file mine.py model.num_classes=3",
        "d2kd check-adapter: The override 'model.num_classes=3' is for model.num_classes, which this "
        "config does not have: did you mean model.student.num_classes or model.student.head.num_classes? "
        "A new key is +key=value.",
    ),
]
