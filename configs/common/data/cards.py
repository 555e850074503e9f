"""Playing cards photographed with a phone: 320 pixels on the long side; `d2kd data get cards` fetches them."""

from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator

from d2kd.data import build_train_loader
from d2kd.data.public import get_public_data

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_public_data)(names="cards_train"),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[  # no flip: a mirrored rank is another picture
                L(T.ResizeShortestEdge)(short_edge_length=[120, 176], sample_style="range", max_size=320),
                L(T.RandomCrop)(crop_type="absolute", crop_size=[160, 160]),
                L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
                L(T.RandomContrast)(intensity_min=0.8, intensity_max=1.2),
            ],
            image_format="RGB",
        ),
        total_batch_size=4,
        num_workers=0,
        seed="${train.seed}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_public_data)(names="cards_val"),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=144, max_size=320)],
            image_format="${...train.mapper.image_format}",
        ),
        batch_size=4,
        num_workers=0,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}", tasks=["bbox"]),
)
