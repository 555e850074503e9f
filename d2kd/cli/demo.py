"""
The demo: a small FCOS learns to detect digits alone, and taught by a bigger one (CrossKD). Makes the data,
trains the teacher, then the student alone, distilled, and alone for as long as distillation costs; evaluates
all on the test split; writes a table, curves and a sheet of images. What is finished is not repeated.

--max-iter N tries this quickly: the teacher trains N iterations too, in a folder of its own, and the data have only as
many images as that needs. A short run shows that everything works, and nothing about quality.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from torch import nn

from d2kd.cli import Parser, check_folder
from d2kd.cli.compare import run_resumable
from d2kd.config import ALONE, CONFIG, load_config
from d2kd.data.digits import SIZES, prepare_digits
from d2kd.engine.sheet import Box, mark
from d2kd.experiments import (
    COCO_METRICS,
    TEACHER,
    CurvePoint,
    Experiment,
    build_jobs,
    collect,
    draw_sheet,
    environments,
    last_quarter,
    load_student,
    load_teacher,
    markdown_table,
    plan_run,
    plan_teacher,
    plot_curves,
    quoted,
    run_jobs,
    short_path,
    stretched,
    write_json,
    write_text,
)

COMMAND = "d2kd demo"
STUDENT, METHOD, SEED = "digits/fcos_small_crosskd.py", CONFIG, 0
TEACHER_CONFIG = "digits/fcos_teacher.py"
EPOCH = 1000  # iterations in which a training sees each image of the whole data once
CUT = "So short a run shows that everything works, and nothing about quality or what distillation gains."
SPLIT = "digits_test"  # choices were made on digits_val
LABELS = {
    TEACHER: "teacher",
    ALONE: "student alone",
    stretched(METHOD): "student alone (stretched)",
    METHOD: "student distilled (CrossKD)",
}
SHEET_ROWS = 8
SHEET_SCORE = 0.4  # detections below it are not drawn,
SHEET_BOXES = 6  # nor more than so many on an image


def demo_experiment(output: Path, max_iter: int | None) -> Experiment:
    """
    The demo as an experiment. With ``max_iter`` its teacher and data are its own, in ``output``: a teacher that was cut
    short is where no other run looks for one.
    """
    overrides: tuple[str, ...] = ()
    teacher_overrides: tuple[str, ...] = ()
    if max_iter is not None:
        root, sizes = demo_data(output, max_iter)
        images = ",".join(f"{split}:{count}" for split, count in sizes.items())
        datasets = [f"dataloader.{loader}.dataset" for loader in ("train", "test")]
        data = [f"{node}.{key}" for node in datasets for key in (f"root={quoted(root)}", f"sizes={{{images}}}")]
        teacher_iterations = min(max_iter, load_config(TEACHER_CONFIG).train.max_iter)
        teacher_overrides = (f"train.max_iter={teacher_iterations}", *data)
        # A teacher that was cut short knows too little, which a real run is told.
        checkpoint = f"model.teacher.checkpoint={quoted(output / TEACHER / 'model_final.pth')}"
        overrides = (*data, checkpoint, "model.teacher.preflight=off")
    return Experiment(
        configs=(STUDENT,),
        output=output,
        methods=(ALONE, METHOD),
        seeds=(SEED,),
        overrides=overrides,
        max_iter=max_iter,
        stretch=True,
        report=(f"dataloader.test.dataset.names={SPLIT}",),
        teacher_config=TEACHER_CONFIG,
        teacher_overrides=teacher_overrides,
    )


def demo_data(output: Path, max_iter: int) -> tuple[Path, dict[str, int]]:
    """The folder of a shorter demo's data, and their images by split: no more than ``max_iter`` iterations see."""
    share = min(1.0, max_iter / EPOCH)
    return output / "data", {split: max(SHEET_ROWS, int(count * share)) for split, count in SIZES.items()}


def is_cut(experiment: Experiment) -> bool:
    """Whether the students train for less than their config's schedule."""
    return experiment.max_iter is not None and experiment.max_iter < load_config(STUDENT).train.max_iter


def demo_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Args:
        results: method -> its result, for those of :data:`LABELS`.
    """
    metrics = [key for key in COCO_METRICS if any(result["values"].get(key) is not None for result in results.values())]
    header = ["test split", *(key.removeprefix("bbox/") for key in metrics), "parameters", "iterations", "s/it"]
    header.append("training CPU s")
    lines = [
        [
            label,
            *(_number(results[method]["values"].get(key), ".1f") for key in metrics),
            f"{results[method]['parameters'] / 1e6:.2f} M",
            str(results[method]["max_iter"]),
            _number(results[method]["seconds_per_iteration"], ".3f"),
            _number(results[method]["cost_seconds"], ".0f"),
        ]
        for method, label in LABELS.items()
    ]
    return markdown_table(header, lines)


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def conclusions(results: Mapping[str, Mapping[str, Any]], *, cut: bool = False) -> list[str]:
    """
    What the table says about distillation, in sentences, whether it helped or not; of runs that were ``cut`` short,
    that it says nothing.
    """
    if cut:
        return [f"{CUT} `d2kd demo` without --max-iter trains long enough to compare."]
    alone, longer, distilled = (results[m] for m in (ALONE, stretched(METHOD), METHOD))
    # As printed: nobody should have to wonder why the differences do not match the table.
    ap, ap_longer, ap_distilled = (round(r["values"]["bbox/AP"], 1) for r in (alone, longer, distilled))
    cost = distilled["cost_seconds"] / alone["cost_seconds"]
    found = [
        f"At equal iterations ({alone['max_iter']}), distillation gives the student {ap_distilled - ap:+.1f} AP "
        f"({ap:.1f} -> {ap_distilled:.1f}), for {cost:.2f} times the training cost."
    ]
    text = f"At equal cost, the student alone ({longer['max_iter']} iterations) reaches {ap_longer:.1f} AP: "
    difference = ap_distilled - ap_longer
    if difference > 0:
        text += f"the distilled one is {difference:.1f} AP above that."
    elif difference < 0:
        text += f"{-difference:.1f} AP above the distilled one, so this run shows no gain at equal cost."
    else:
        text += "as much as the distilled one, so this run shows no gain at equal cost."
    found.append(text)
    added = last_quarter([CurvePoint(*point) for point in alone["curve"]])
    if added is not None:
        added = round(added, 1) + 0.0  # never "-0.0"
        found.append(f"The last quarter of its schedule added {added:+.1f} AP (val) to the student alone.")
    found.append(
        f"One seed ({SEED}), same initial weights and data order in all students; AP of {SPLIT}, choices were made "
        "on digits_val. `d2kd compare` repeats it over seeds."
    )
    return found


@torch.no_grad()
def detect(model: nn.Module | Callable, mapped: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[Box]]:
    """Each image's detections to be drawn, best first (:data:`SHEET_SCORE`, :data:`SHEET_BOXES`)."""
    out = []
    for output in model(list(mapped)):
        found = output["instances"].to("cpu")
        rows = zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True)
        best = sorted(rows, key=lambda row: -row[2])[:SHEET_BOXES]
        out.append([Box(tuple(xyxy), names[label], score) for xyxy, label, score in best if score >= SHEET_SCORE])
    return out


def write_sheet(experiment: Experiment, path: Path) -> None:
    """Some test images, with the ground truth and what the student alone, distilled, and the teacher detect."""
    runs = {method: plan_run(experiment, STUDENT, method, SEED) for method in (ALONE, METHOD)}
    cfg = runs[METHOD].load_config(*experiment.report)
    dicts = instantiate(cfg.dataloader.test.dataset)
    step = len(dicts) // SHEET_ROWS  # evenly spaced, not picked
    dicts = dicts[::step][:SHEET_ROWS]
    names = MetadataCatalog.get(SPLIT).thing_classes
    mapped = [instantiate(cfg.dataloader.test.mapper)(item) for item in dicts]
    truth = [[_truth(a, names) for a in item["annotations"]] for item in dicts]
    columns = {"ground truth": truth}
    models: dict[str, nn.Module | Callable] = {
        m: load_student(run.load_config(), run.folder / "model_final.pth") for m, run in runs.items()
    }
    models[TEACHER], _ = load_teacher(cfg)
    for method, model in models.items():
        found = detect(model, mapped, names)
        columns[LABELS[method]] = [mark(boxes, there) for boxes, there in zip(found, truth, strict=True)]
    images = [item["image"].permute(1, 2, 0).numpy()[:, :, ::-1] for item in mapped]  # mapped as BGR
    caption = (
        f"Every {step}th image of {SPLIT}; the {SHEET_BOXES} best detections with scores from "
        f"{SHEET_SCORE}. Blue: right class, IoU >= 0.5. Orange: wrong."
    )
    draw_sheet(path, images, columns, caption)


def _truth(annotation: Mapping[str, Any], names: Sequence[str]) -> Box:
    x, y, width, height = annotation["bbox"]
    return Box((x, y, x + width, y + height), names[annotation["category_id"]])


def write_results(experiment: Experiment, command: str) -> str:
    """Write everything to the output folder; returns what to print."""
    results = {result["method"]: result for result in collect(experiment)[0]}
    table, sentences = demo_table(results), conclusions(results, cut=is_cut(experiment))
    text = f"{table}\n" + "\n".join(f"- {sentence}" for sentence in sentences) + "\n"
    write_text(experiment.output / "results.md", f"{text}\nMade by `{command}`.\n")
    write_json(
        experiment.output / "results.json",
        {"command": command, "conclusions": sentences, "runs": list(results.values())},
    )
    plot_curves(experiment.output / "curves.png", list(results.values()), LABELS)
    write_sheet(experiment, experiment.output / "sheet.png")
    return f"\n{text}\nWritten to {short_path(experiment.output)}: results.md, results.json, curves.png, sheet.png"


def expected_minutes(experiment: Experiment, processes: int) -> int:
    """For everything from the beginning, on idle cores; from seconds per iteration measured on one."""
    share = min(1.0, (experiment.max_iter or EPOCH) / EPOCH)  # of the images
    training = plan_teacher(experiment, STUDENT)[1]
    teacher = 0.053 * training.max_iter + 10 if training else 0
    students = plan_run(experiment, STUDENT, ALONE, SEED).max_iter
    alone = 0.03 * students + 8 + 12 * share  # evaluations included
    distilled = longer = 0.05 * students + 8 + 12 * share
    aside = alone if processes == 1 else 0  # otherwise beside the teacher
    return math.ceil((10 + 20 * share + teacher + aside + distilled + longer + 15 * share) / 60)


def introduction(experiment: Experiment, processes: int) -> str:
    minutes = expected_minutes(experiment, processes)
    minutes_text = "1 minute" if minutes == 1 else f"{minutes} minutes"
    side_by_side = "one training at a time" if processes == 1 else "two trainings side by side"
    sizes, teacher = SIZES, ""
    if experiment.max_iter is not None:
        sizes = demo_data(experiment.output, experiment.max_iter)[1]
        teacher = f", at most {experiment.max_iter} iterations"
    return f"""\
This demo trains a small FCOS on digits pasted on photographs, alone and distilled from a bigger FCOS:
  1. make the data (once; {sum(sizes.values())} images)
  2. train the teacher (once{teacher})
  3. train the student alone
  4. train the student distilled by CrossKD: same seed, initial weights, schedule and data order
  5. train the student alone for as long as the distilled run cost
  6. evaluate all on the test split, and write table, curves and images to {short_path(experiment.output)}
{CUT + chr(10) if is_cut(experiment) else ""}\
The whole takes about {minutes_text} on idle cores, {side_by_side} with one thread each.
Ctrl-C stops it, and the same command goes on from there: what is finished is not repeated.
"""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for; beside its options ``command``, that line itself."""
    parser = Parser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output", type=Path, help="default: output/demo, or output/demo_N with --max-iter N")
    parser.add_argument(
        "--max-iter",
        type=int,
        metavar="N",
        help="iterations of the students, and at most of the teacher (default: 2000, and 5000 of the teacher)",
    )
    args = parser.parse_args(argv)
    if args.max_iter is not None and args.max_iter < 1:
        parser.error("--max-iter must be at least 1")
    args.command = shlex.join([*COMMAND.split(), *argv])
    return args


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        ValueError: a folder holds another run, or other files than the data's.
        ImportError: the data has to be made, and scikit-learn or scikit-image is missing.
    """
    name = "demo" if args.max_iter is None else f"demo_{args.max_iter}"
    output = args.output or Path("output", name)
    check_folder("--output", output)
    experiment = demo_experiment(output, args.max_iter)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also beside a GPU: the demo's costs are CPU seconds
    processes = min(2, os.cpu_count() or 1)
    print(introduction(experiment, processes), flush=True)
    start = time.monotonic()
    data = prepare_digits(*demo_data(output, args.max_iter)) if args.max_iter else prepare_digits()
    print(f"data: {data} ({time.monotonic() - start:.0f} s)", flush=True)
    if run_jobs(build_jobs(experiment), environments(experiment.device, processes)):
        print("\nThe demo is not complete; the same command goes on where it stopped.", file=sys.stderr)
        return 1
    print(write_results(experiment, args.command))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_resumable(COMMAND, run, parse_args(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
