"""Wrong commands and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from d2kd.__main__ import COMMANDS
from d2kd.methods import METHODS
from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES"]


def case(given: str, arguments: str, says: str, prepare: Callable[[Path], object] = write_run) -> BadInput:
    """``arguments`` as they are typed; what ``prepare`` writes is there before: the config mine.py by default."""

    def make(folder: Path) -> list[str]:
        prepare(folder)
        return arguments.split()

    return BadInput("Command line", given, make, says)


def nothing(folder: Path) -> None:
    """The command reads no files."""


def metrics(folder: Path) -> None:
    """A run that logged nothing but its learning rate."""
    (folder / "run").mkdir()
    (folder / "run/metrics.json").write_text("")


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
    case(
        "`d2kd compare` that sets the seed",
        "compare --config-file mine.py train.seed=3",
        "d2kd compare: train.seed is set by this tool: use --seeds (d2kd compare --help).",
    ),
    case(
        "`d2kd compare` that sets the losses",
        "compare --config-file mine.py model.losses=null",
        "d2kd compare: model.losses is set by this tool: use --methods, or another config (d2kd compare --help).",
    ),
    case(
        "`d2kd compare` with a negative seed",
        "compare --config-file mine.py --seeds -1",
        "d2kd compare: --seeds must be 0 or more (d2kd compare --help).",
    ),
    case(
        "`d2kd compare` with a seed that is no number",
        "compare --config-file mine.py --seeds first",
        "d2kd compare: argument --seeds: first is no whole number (d2kd compare --help).",
    ),
    case(
        "`d2kd compare` with no process",
        "compare --config-file mine.py --processes 0",
        "d2kd compare: --processes and --max-iter must be at least 1 (d2kd compare --help).",
    ),
    case(
        "`d2kd compare --stretch` without the student alone",
        "compare --config-file mine.py --methods crosskd --stretch",
        "d2kd compare: --stretch needs 'alone' and a distilled method among --methods (d2kd compare --help).",
    ),
    case(
        "`d2kd compare --report` with a name alone",
        "compare --config-file mine.py --report birds_val",
        "d2kd compare: --report birds_val: expected key=value of dataloader.test or "
        "dataloader.evaluator; overrides for training come before --report (d2kd compare --help).",
    ),
    case(
        "`d2kd compare --report` of a misspelt dataset",
        "compare --config-file mine.py --report dataloader.test.dataset.names=birds_tset",
        "d2kd compare: mine.py: dataloader.test.dataset.names names the dataset 'birds_tset', which is "
        "not registered. Your own are registered in the config.",
    ),
    case(
        "`d2kd compare` with a misspelt method",
        "compare --config-file mine.py --methods alone croskd",
        f"d2kd compare: Unknown method 'croskd', expected one of {', '.join(METHODS)}; did you mean "
        "crosskd or crosskd_pkd or bckd?",
    ),
    case(
        "`d2kd compare` of two configs of one name",
        "compare --config-file mine.py images/mine.py",
        "d2kd compare: Two configs are named mine.py, as the folder of their runs would be: rename one.",
    ),
    case(
        "`d2kd compare` into a file",
        "compare --config-file mine.py --output birds.json",
        "d2kd compare: --output birds.json is a file, expected the name of a folder.",
    ),
    case(
        "`d2kd compare` without the teacher",
        "compare --config-file mine.py model.teacher.checkpoint=none.pth",
        "d2kd compare: model.teacher.checkpoint of mine.py is none.pth, which does not exist, and no "
        "*_teacher.py beside that config writes to its folder: correct it, or add --teacher-config FILE "
        "to train the teacher.",
    ),
    case(
        "`d2kd plot` of a folder that is not there",
        "plot output/run",
        "d2kd plot: output/run has no metrics.json, expected the output folder of a run.",
        nothing,
    ),
    case(
        "`d2kd plot` of a folder without metrics",
        "plot images",
        "d2kd plot: images has no metrics.json, expected the output folder of a run.",
    ),
    case(
        "`d2kd plot` of a run that logged nothing",
        "plot run",
        "d2kd plot: These runs have logged neither AP nor losses nor a learning rate: there is nothing to draw.",
        metrics,
    ),
    case(
        "`d2kd plot` of one run twice", "plot run run", "d2kd plot: A run is named twice, expected each once.", metrics
    ),
    case(
        "`d2kd plot` into a folder",
        "plot run --output run",
        "d2kd plot: --output run is a folder, expected the name of a file.",
        metrics,
    ),
    case(
        "`d2kd benchmark` of an unknown family",
        "benchmark --families yolo",
        "d2kd benchmark: argument --families: yolo is none of retinanet, fcos, gfl, atss (d2kd benchmark --help).",
        nothing,
    ),
    case(
        "`d2kd benchmark` with no round",
        "benchmark --rounds 0",
        "d2kd benchmark: argument --rounds: expected a whole number >= 1, found 0 (d2kd benchmark --help).",
        nothing,
    ),
    case(
        "`d2kd benchmark` on three ranks",
        "benchmark --ranks 3",
        "d2kd benchmark: --ranks 3, but the digits' batch of 8 images is shared evenly: use a divisor "
        "(d2kd benchmark --help).",
        nothing,
    ),
    case(
        "`d2kd export` without `--output`",
        "export mine.py teacher.pth",
        "d2kd export: the following arguments are required: --output (d2kd export --help).",
    ),
    case(
        "`d2kd export` of a run's folder",
        "export mine.py images --output student.pth",
        "d2kd export: The checkpoint is 'images', but there is no such file.",
    ),
    case(
        "`d2kd export` of a run without checkpoints",
        "export mine.py output/model_final.pth --output student.pth",
        "d2kd export: The checkpoint is 'output/model_final.pth', but there is no such file.",
    ),
    case(
        "`d2kd export` into what it reads",
        "export mine.py teacher.pth --output teacher.pth --overwrite",
        "d2kd export: --output teacher.pth is what is read: give it another name.",
    ),
    case(
        "`d2kd export` into a file that exists",
        "export mine.py images/0.png --output teacher.pth",
        "d2kd export: --output teacher.pth exists: add --overwrite to replace it.",
    ),
    case(
        "`d2kd export` into a .pkl",
        "export mine.py teacher.pth --output student.pkl",
        "d2kd export: --output is student.pkl, expected a name that ends in .pth: Detectron2 goes by it.",
    ),
    case(
        "`d2kd export` of one file for both",
        "export mine.py teacher.pth --output student.pth --torchscript student.pth",
        "d2kd export: --output and --torchscript are both student.pth: give them different names.",
    ),
    case(
        "`d2kd export` with an image that is none",
        "export mine.py teacher.pth --output student.pth --torchscript x.ts --image birds.json",
        "d2kd export: --image birds.json is no image that Pillow reads.",
    ),
    case(
        "`d2kd convert` of an unknown architecture",
        "convert yolox.pth out.pth --detector yolox --depth 50",
        "d2kd convert: argument --detector: yolox is none of gfl, atss, retinanet, fcos (d2kd convert --help).",
        nothing,
    ),
    case(
        "`d2kd convert` of an unknown depth",
        "convert gfl.pth out.pth --detector gfl --depth 152",
        "d2kd convert: argument --depth: 152 is none of 18, 34, 50, 101 (d2kd convert --help).",
        nothing,
    ),
    case(
        "`d2kd convert` of a file that is not there",
        "convert gfl.pth out.pth --detector gfl --depth 50",
        "d2kd convert: gfl.pth: no such file.",
        nothing,
    ),
    case(
        "`d2kd methods` with a misspelt name",
        "methods croskd",
        f"d2kd methods: Unknown method 'croskd', expected one of {', '.join(METHODS)}; did you mean "
        "crosskd or crosskd_pkd or bckd?",
        nothing,
    ),
    case(
        "`d2kd demo` of no iterations",
        "demo --max-iter 0",
        "d2kd demo: --max-iter must be at least 1 (d2kd demo --help).",
        nothing,
    ),
    case(
        "`d2kd demo` into a file",
        "demo --output mine.py",
        "d2kd demo: --output mine.py is a file, expected the name of a folder.",
    ),
]
