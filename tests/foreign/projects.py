"""Three projects as people have them on top of Detectron2, rebuilt at a tiny size. Not a test."""

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn


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
