"""The embedded digits: 96-pixel images, no augmentation (a flipped digit is another digit)."""

from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator

from d2kd.data import build_train_loader
from d2kd.data.digits import get_digits

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_digits)(names="digits_train", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR"),
        total_batch_size=8,
        num_workers=0,
        seed="${train.seed}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_digits)(names="digits_val", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR"),
        batch_size=10,
        num_workers=0,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}", tasks=["bbox"]),
)
