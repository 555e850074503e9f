"""The training script of a project with a backbone and keys of its own."""

import sys
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.logger import setup_logger

from tests.foreign.projects import Batches
from tests.helpers import build_backbone


def build_own_backbone(cfg, input_shape):
    return build_backbone(width=cfg.MODEL.OWN_BACKBONE.WIDTH, fpn=8)


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return Batches()


def main(config_file, *opts):
    cfg = get_cfg()
    cfg.MODEL.OWN_BACKBONE = CfgNode({"WIDTH": 4})
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True, exist_ok=True)
    setup_logger(cfg.OUTPUT_DIR)
    (output / "config.yaml").write_text(cfg.dump())
    if build_own_backbone.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(build_own_backbone)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.model


if __name__ == "__main__":
    main(*sys.argv[1:])
