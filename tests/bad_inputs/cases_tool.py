"""Wrong options of the commands that need no training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from d2kd.config import ALONE
from d2kd.methods import METHODS
from tests.bad_inputs.cases_command import case, nothing
from tests.bad_inputs.tiny import write_run
from tests.experiments.small import result

__all__ = ["CASES"]


def metrics(folder: Path) -> None:
    """A run that logged nothing."""
    (folder / "run").mkdir()
    (folder / "run/metrics.json").write_text("")


def outputs(first: dict[str, str] | None = None, **changes: str | int) -> Callable[[Path], None]:
    """Outputs ``short`` and ``long`` of ``d2kd compare``; a result of the second has ``changes``, the other ``first``."""

    def write(folder: Path) -> None:
        for name, own in ("short", first or {}), ("long", changes):
            (folder / name).mkdir()
            content = {"runs": [{**result(ALONE, 0, 30.0), **own}]}
            (folder / name / "results.json").write_text(json.dumps(content))

    return write


def unregistered(folder: Path) -> None:
    """A run whose images without labels have a name that nothing is registered by."""
    more = "unlabeled = L(get_detection_dataset_dicts)(names='birds_more')"
    imports = "from detectron2.config import LazyCall as L\nfrom detectron2.data import get_detection_dataset_dicts\n"
    write_run(folder, f"{imports}dataloader['train'].{more}\ndataloader['train'].unlabeled_batch_size = 1\n")


def unlabelled(folder: Path) -> None:
    """A run whose images have no objects."""
    write_run(folder)
    shutil.copy(folder / "teacher.pth", folder / "student.pth")
    labels = json.loads((folder / "birds.json").read_text())
    (folder / "birds.json").write_text(json.dumps({**labels, "annotations": []}))


CASES = [
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
        "not registered. Register your own in the config.",
    ),
    case(
        "`d2kd compare` of images without labels that are not registered",
        "compare --config-file mine.py",
        "d2kd compare: mine.py: dataloader.train.unlabeled.names names the dataset 'birds_more', which is not "
        "registered. Register your own in the config.",
        unregistered,
    ),
    case(
        "`d2kd compare` of the teacher as a method",
        "compare --config-file mine.py --methods alone teacher",
        "d2kd compare: Method 'teacher' is what results call the teacher, which is evaluated without being named: name "
        "another; the losses of the config are the method 'config'.",
    ),
    case(
        "`d2kd compare` of a stretched run as a method",
        "compare --config-file mine.py --methods alone alone_as_long_as_crosskd",
        "d2kd compare: Method 'alone_as_long_as_crosskd' is what results call a training that --stretch adds: name "
        "'crosskd' instead, with --stretch.",
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
        "*teacher.py beside that config writes to its folder: correct it, or add --teacher-config FILE "
        "to train the teacher.",
    ),
    case(
        "`d2kd plot` of a folder that is not there",
        "plot output/run",
        "d2kd plot: output/run has no metrics.json, expected the output folder of a run, or of d2kd compare (results.json).",
        nothing,
    ),
    case(
        "`d2kd plot` of a folder without metrics",
        "plot images",
        "d2kd plot: images has no metrics.json, expected the output folder of a run, or of d2kd compare (results.json).",
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
        "`d2kd plot` of outputs with two metrics",
        "plot short long",
        "d2kd plot: fcos has results with metric 'bbox/AP' and 'bbox/AP50', expected one: draw a figure of each, or run "
        "d2kd compare again with one train.best_metric.",
        outputs(metric="bbox/AP50"),
    ),
    case(
        "`d2kd plot` of outputs from a CPU and a GPU",
        "plot short long",
        "d2kd plot: fcos has results with device 'cpu' and 'cuda', expected one: draw a figure of each, or run d2kd "
        "compare again with one train.device.",
        outputs(device="cuda"),
    ),
    case(
        "`d2kd plot` of outputs with and without `--report`",
        "plot short long",
        "d2kd plot: fcos has results with values on 'fcos_val' and 'birds_test', expected one: draw a figure of "
        "each, or run d2kd compare again with one --report.",
        outputs(values_on="birds_test"),
    ),
    case(
        "`d2kd plot` into a folder",
        "plot run --output run",
        "d2kd plot: --output run is a folder, expected the name of a file.",
        metrics,
    ),
    case(
        "`d2kd plot` over what a run has logged",
        "plot run --output run/metrics.json",
        "d2kd plot: --output is run/metrics.json, expected a name that ends in .png: the figure is a PNG.",
        metrics,
    ),
    case(
        "`d2kd plot` of two configs of one name",
        "plot short long",
        "d2kd plot: fcos has results of cards/fcos.py and of digits/fcos.py: draw a figure of each.",
        outputs({"config_file": "cards/fcos.py"}, config_file="digits/fcos.py", max_iter=1600),
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
        "d2kd export: images is a folder, expected a file.",
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
    case(
        "`d2kd visualize` of weights that are not there",
        "visualize --config-file mine.py --weights student.pth",
        "d2kd visualize: There is no checkpoint student.pth.",
    ),
    case(
        "`d2kd visualize --output` with a file",
        "visualize --config-file mine.py --weights student.pth --output mine.py",
        "d2kd visualize: --output mine.py is a file, expected the name of a folder.",
    ),
    case(
        "`d2kd visualize` where no image has objects",
        "visualize --config-file mine.py --weights student.pth",
        "d2kd visualize: No image of dataloader.test has objects: name some with --images.",
        unlabelled,
    ),
    case(
        "`d2kd data get` of an unknown data set",
        "data get cars",
        "d2kd data get: argument NAME: cars is none of cards, aquarium, bccd (d2kd data get --help).",
        nothing,
    ),
    case(
        "`d2kd data get --from` a file that is not there",
        "data get cards --from cards.zip --root data",
        "d2kd data: --from is cards.zip, but there is no such file or folder.",
        nothing,
    ),
    case(
        "`d2kd data get --root` with a file",
        "data get cards --from cards.zip --root mine.py",
        "d2kd data: --root mine.py is a file, expected the name of a folder.",
    ),
]
