"""The loaders of a config: Detectron2's name the file of an entry that cannot be read."""

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from omegaconf import OmegaConf

from d2kd.data import SampleError
from d2kd.engine import make_loader


def own_loader(*, mapper):
    return mapper


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_detectron2s_loaders_name_the_file_that_cannot_be_read(split, workers, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"no image")
    loader = L(build_detection_train_loader)(total_batch_size=1, aspect_ratio_grouping=False)
    if split == "test":
        loader = L(build_detection_test_loader)()
    loader.dataset = [{"file_name": str(path), "width": 8, "height": 8, "image_id": 0, "annotations": []}]
    loader.num_workers = workers
    loader.mapper = L(DatasetMapper)(is_train=split == "train", augmentations=[], image_format="${....image_format}")
    cfg = OmegaConf.create({"image_format": "BGR", "dataloader": {split: loader}})
    before = OmegaConf.to_yaml(cfg)
    with pytest.raises(SampleError, match=rf"^dataloader.{split}.mapper cannot read {path}: UnidentifiedImageError: "):
        next(iter(make_loader(cfg, split)))
    assert OmegaConf.to_yaml(cfg) == before


def test_a_loader_of_a_user_gets_its_own_mapper():
    mapper = L(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR")
    cfg = OmegaConf.create({"dataloader": {"train": L(own_loader)(mapper=mapper)}})
    assert type(make_loader(cfg, "train")) is DatasetMapper
