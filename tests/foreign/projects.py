"""
What three projects on top of Detectron2 bring of their own, at a tiny size; their configs stand in the folders beside
this file. Not a test.
"""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from omegaconf import DictConfig
from torch import Tensor, nn

from tests.helpers import make_batch


class SharedTrainingHead(RetinaNetHead):
    """
    Each batch norm normalises the cells of all levels together: one set of statistics of all levels, in training as in
    inference. As in "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), section 5.
    """

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return (
            self._run([*self.cls_subnet, self.cls_score], features),
            self._run([*self.bbox_subnet, self.bbox_pred], features),
        )

    @staticmethod
    def _run(modules: list[nn.Module], maps: list[Tensor]) -> list[Tensor]:
        for module in modules:
            if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                maps = [module(x) for x in maps]
                continue
            cells = module(torch.cat([x.flatten(2) for x in maps], dim=2).unsqueeze(3)).squeeze(3)
            parts = cells.split([x.shape[2] * x.shape[3] for x in maps], dim=2)
            maps = [part.unflatten(2, x.shape[2:]) for part, x in zip(parts, maps)]
        return maps


class Batches:
    """An endless train loader of random images with two objects each."""

    def __iter__(self) -> Iterator[list[dict]]:
        return (make_batch(((48, 64), (64, 56)), seed=seed) for seed in count())


def train(cfg: DictConfig) -> nn.Module:
    """What Detectron2's tools for LazyConfigs do with a config, on one process; returns the model."""
    model = instantiate(cfg.model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(create_ddp_model(model), instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), cfg.train.log_period),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, cfg.train.max_iter)
    return model


def code_blocks(language: str, page: str = "embedding.md") -> list[str]:
    """The blocks of one language in a page of the documentation."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def find_diff(file: str) -> str:
    """The page's diff that changes or adds ``file``."""
    (found,) = [block for block in code_blocks("diff") if f"+++ b/{file}\n" in block]
    return found


def apply_diff(diff: str, folder: Path) -> None:
    """Change the files of ``folder``; each hunk's old lines must be there, once."""
    for old_file, new_file, body in re.findall(r"--- (\S+)\n\+\+\+ b/(\S+)\n((?:(?!--- ).*\n)*)", diff):
        path = folder / new_file
        text = "" if old_file == "/dev/null" else path.read_text()
        for hunk in re.split(r"@@.*\n", body):
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(x[1:] for x in lines if x[0] in marks) for marks in (" -", " +"))
            if text.count(old) != 1 and old:
                raise ValueError(f"{new_file} has not once:\n{old}")
            text = text.replace(old, new, 1) if old else text + new
        path.write_text(text)


def changed_lines(diff: str) -> int:
    """Lines that are new or different."""
    return len(re.findall(r"^\+(?!\+\+ )", diff, flags=re.MULTILINE))
