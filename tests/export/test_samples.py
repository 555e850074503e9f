"""Images to calibrate with are spread over the training data, and mapped as test images."""

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from d2kd.export import ExportError, train_images


def numbers(count):
    return list(range(count))


class Mapper:
    def __call__(self, number):
        return {"image": torch.full((3, 2, 2), number)}


def config(images):
    dataloader = {"train": {"dataset": L(numbers)(count=images)}, "test": {"mapper": L(Mapper)()}}
    return OmegaConf.create({"dataloader": dataloader}, flags={"allow_objects": True})


@pytest.mark.parametrize("images, count, taken", [(10, 3, [0, 3, 6]), (2, 5, [0, 1]), (4, 4, [0, 1, 2, 3])])
def test_they_are_spread_evenly_and_none_is_taken_twice(images, count, taken):
    assert [int(x[0, 0, 0]) for x in train_images(config(images), count)] == taken


@pytest.mark.parametrize("key", ["dataloader.train.dataset", "dataloader.test.mapper"])
def test_a_config_without_them_is_refused(key):
    cfg = config(1)
    OmegaConf.update(cfg, key, None)
    with pytest.raises(ExportError, match=f"The config has no {key}, which --int8 takes its images from"):
        train_images(cfg, 1)
