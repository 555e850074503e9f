"""The text of data.py, which `d2kd init` writes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from d2kd.cli.init_choices import Choices

__all__ = ["comment", "data_file", "path_text"]


def data_file(
    folder: Path,
    format: str,
    data: Mapping[str, tuple[Path, Path]],
    classes: Sequence[str],
    difficult: bool,
    choices: Choices,
) -> str:
    """
    Args:
        folder: of the project.
        format, classes: see :func:`d2kd.data.register_labelled`.
        data: images and annotations of "train" and "val".
        difficult: whether objects of val are marked so.
    """
    name = folder.name
    inside = all(path.is_relative_to(folder) for paths in data.values() for path in paths)
    register = "\n".join(
        f'register_labelled(\n    "{name}_{split}",\n    format="{format}",\n'
        f"    images={path_text(images, folder)},\n    annotations={path_text(annotations, folder)},\n"
        f"    classes=_classes,\n{_DIFFICULT if difficult and split == 'val' else ''})"
        for split, (images, annotations) in data.items()
    )
    moved = (
        "# The data lie in this folder and are found relative to it: both can be moved together."
        if inside
        else "# The data lie elsewhere, at absolute paths: this folder can be moved. Where the data move, change these."
    )
    sides = [round(0.8 * choices.short_side), round(1.2 * choices.short_side)]
    in_training = f'short_edge_length={sides}, sample_style="range", max_size={choices.max_size}'
    in_evaluation = f"short_edge_length={choices.short_side}, max_size={choices.max_size}"
    quarter = max(1, choices.iterations // 4)
    return f'''"""What teacher and student of {name} share: the images, and how long they train on them."""

from pathlib import Path

import d2kd
from d2kd.data import build_train_loader, register_labelled
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator

_here = Path(__file__).resolve().parent  # everything that is trained goes to output/ in this folder
_classes = {json.dumps(list(classes), ensure_ascii=False)}  # by class id
{moved}
{register}

dataloader = dict(
    train=L(build_train_loader)(  # Detectron2's build_detection_train_loader, with an order that resumes
        # filter_empty=False: images without boxes stay, as background.
        dataset=L(get_detection_dataset_dicts)(names="{name}_train", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                # Around the size that is evaluated, below.
                L(T.ResizeShortestEdge)({in_training}),
                L(T.RandomFlip)(horizontal=True),  # delete it where mirroring makes another object, as of text
            ],
            image_format="RGB",  # the order in which the backbones' first weights want the channels
        ),
        total_batch_size={choices.batch},  # {choices.batch_reason}
        num_workers={0 if choices.device == "cpu" else 4},  # processes that read images{_WORKERS[choices.device]}
        seed="${{train.seed}}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="{name}_val", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
{comment(f"The short side, in pixels: {choices.size_reason}.", 12)}
            augmentations=[L(T.ResizeShortestEdge)({in_evaluation})],
            image_format="RGB",
        ),
        batch_size=1,  # in a larger batch an image is padded to the others' size, which moves AP a little
        num_workers={0 if choices.device == "cpu" else 4},
    ),
    evaluator=L(COCOEvaluator)(
        dataset_name="${{..test.dataset.names}}",  # so that --report of d2kd compare needs one name
        tasks=["bbox"],
        output_dir="${{train.output_dir}}",  # where Detectron2 writes the boxes that it evaluates on
        allow_cached_coco=False,  # anew in each run: they may have been corrected
    ),
)

optimizer = d2kd.get_config("common/optim.py").adamw  # weight decay 0.01, none for norms
lr_multiplier = d2kd.get_config("common/optim.py").steps  # warm-up, drops at 6/9 and 8/9 of train.max_iter
train = dict(  # docs: configs/common/train.py of d2kd
    max_iter={choices.iterations},  # {choices.iterations_reason}; fewer to try things out
    eval_period={quarter},  # iterations between two evaluations
    checkpointer=dict(period={quarter}, max_to_keep=1),  # iterations between two checkpoints
    log_period=20,  # iterations between two lines of the log
    init_checkpoint="",  # what the detector starts from, beside its backbone's weights
    seed=0,  # of initial weights, order of images, augmentations
    device="{choices.device}",  # "cuda" or "cpu", as where d2kd init ran: so are batch and workers above
    amp=dict(enabled=False),  # mixed precision, for a GPU
    clip_grad=dict(max_norm=10.0, norm_type=2.0),  # of all gradients together; read by d2kd train only
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),  # for several GPUs
)
'''


_DIFFICULT = "    ignore_difficult=True,  # objects marked so are neither missed nor wrong, as in Pascal VOC\n"
_WORKERS = {"cpu": "; 0: the process that trains, which needs the cores", "cuda": " beside the one that trains"}


def comment(text: str, indent: int = 0) -> str:
    """Lines of at most 120 characters."""
    return textwrap.fill(text, 120, initial_indent=f"{' ' * indent}# ", subsequent_indent=f"{' ' * indent}# ")


def path_text(path: Path, folder: Path) -> str:
    """A path as the config says it: relative to the project's folder if it is inside."""
    if path.is_relative_to(folder):
        return f"_here / {json.dumps(path.relative_to(folder).as_posix(), ensure_ascii=False)}"
    return f"Path({json.dumps(str(path), ensure_ascii=False)})"
