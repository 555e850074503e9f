"""Datasets, images, boxes, mappers and images without labels that nothing can be learnt from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.runs import Arguments, train

__all__ = ["CASES"]

Coco = dict[str, Any]

FILE = "d2kd train: dataloader.train.dataset.names has 'birds_train', whose file {folder}/birds.json "
ENTRY = "d2kd train: dataloader.train.mapper cannot read entry 1 of dataloader.train.dataset ({folder}/images/1.png): "

MAPPER = """
from detectron2.data import DatasetMapper

class Mine(DatasetMapper):
    def __call__(self, item):
        sample = super().__call__(item)
        {line}

dataloader["train"].mapper._target_ = Mine
"""
UNLABELED = """
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

dataloader["train"].unlabeled = L(get_detection_dataset_dicts)(names="birds_val", filter_empty=False)
dataloader["train"].unlabeled_batch_size = 1
"""
OLD = """
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

if "birds_old" not in DatasetCatalog:
    register_coco_instances("birds_old", {}, "old.json", "images")
"""
PHOTOGRAPHS = """
from detectron2.config import LazyCall as L
from d2kd.data.public import get_public_data

dataloader["test"].dataset = L(get_public_data)(names="cards_val", root="datasets")
"""
SAMPLER = """
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from d2kd.data import without_labels

def _with_images_without_labels(dataset):
    return dataset + without_labels(dataset)

def _by_class(dataset):
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, 0.5)
    return RepeatFactorTrainingSampler(factors)

_birds = L(get_detection_dataset_dicts)(names="birds_train")
dataloader["train"] = L(build_detection_train_loader)(
    dataset=L(_with_images_without_labels)(dataset=_birds),
    mapper=L(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR"),
    sampler=L(_by_class)(dataset="${..dataset}"),
    total_batch_size=2,
)
"""
DIGITS = """
from detectron2.config import LazyCall as L
from d2kd.data.digits import get_digits

dataloader["train"].dataset = L(get_digits)(names="digits_train", images=[5, 5])
"""
OTHER_VAL = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

DatasetCatalog.remove("birds_val")
MetadataCatalog.remove("birds_val")
register_coco_instances("birds_val", {}, "val.json", "images")
"""


def row(given: str, arguments: Arguments, says: str) -> BadInput:
    return BadInput("Dataset", given, arguments, says)


def annotations(
    given: str, edit: Callable[[Coco], object], says: str, *overrides: str, evaluate: bool = False
) -> BadInput:
    """The COCO file to train on, or to evaluate on, is changed in place, or into what ``edit`` returns."""

    def change(folder: Path) -> None:
        file = folder / "birds.json"
        shutil.copy(file, folder / "val.json")
        content = json.loads(file.read_text())
        content = edit(content) or content
        file.write_text(content if isinstance(content, str) else json.dumps(content))

    options = ["--eval-only"] if evaluate else []
    weights = ["train.init_checkpoint=teacher.pth"] if evaluate else []
    more = "" if evaluate else OTHER_VAL
    return row(given, train(*weights, *overrides, options=options, more=more, change=change), says)


def image(given: str, edit: Callable[[Path], object], says: str) -> BadInput:
    """One image is changed."""
    return row(given, train(change=lambda folder: edit(folder / "images/1.png")), says)


def mapper(given: str, line: str, says: str) -> BadInput:
    """A mapper of one's own, whose last line is ``line``."""
    return row(f"a mapper that {given}", train(more=MAPPER.format(line=line)), says)


def one(**fields: Any) -> Callable[[Coco], None]:
    return lambda coco: coco["annotations"][1].update(fields)


def all_boxes(*box: float) -> Callable[[Coco], None]:
    def edit(coco: Coco) -> None:
        for annotation in coco["annotations"]:
            annotation["bbox"] = list(box)

    return edit


def lacks(kind: str, field: str) -> Callable[[Coco], None]:
    """The second of that kind lacks it."""
    return lambda coco: coco[kind][1].pop(field) and None


def crowds(coco: Coco) -> None:
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1


def pixels(*shape: int, kind: type = np.uint8) -> Callable[[Path], None]:
    top = np.iinfo(kind).max
    return lambda path: Image.fromarray(np.full(shape, top // 2, kind)).save(path)


def val_of_another_order(folder: Path) -> None:
    content = json.loads((folder / "birds.json").read_text())
    for category, name in zip(content["categories"], ("heron", "tern", "plover")):
        category["name"] = name
    (folder / "val.json").write_text(json.dumps(content))


def empty_val(folder: Path) -> None:
    content = json.loads((folder / "birds.json").read_text())
    (folder / "val.json").write_text(json.dumps({**content, "images": [], "annotations": []}))


CASES = [
    row(
        "`dataloader.train.dataset.names` misspelt",
        train("dataloader.train.dataset.names=brids_train"),
        "d2kd train: dataloader.train.dataset.names names the dataset 'brids_train', which is not "
        "registered: did you mean birds_train? Register your own in the config.",
    ),
    row(
        "two names in one text",
        train("dataloader.train.dataset.names='birds_train,birds_val'"),
        "d2kd train: dataloader.train.dataset.names names the dataset 'birds_train,birds_val', which is "
        "not registered. Register your own in the config.",
    ),
    row(
        "`dataloader.train.dataset.names=null`",
        train("dataloader.train.dataset.names=null"),
        "d2kd train: dataloader.train.dataset.names is None, expected the name of a dataset, or a list of names.",
    ),
    row(
        "`dataloader.test.dataset.names` misspelt",
        train("dataloader.test.dataset.names=brids_val"),
        "d2kd train: dataloader.test.dataset.names names the dataset 'brids_val', which is not "
        "registered: did you mean birds_val? Register your own in the config.",
    ),
    row(
        "`dataloader.evaluator.dataset_name` misspelt",
        train("dataloader.evaluator.dataset_name=brids_val"),
        "d2kd train: dataloader.evaluator.dataset_name is 'brids_val', expected one registered dataset: "
        "did you mean birds_val?",
    ),
    row(
        "`dataloader.evaluator.dataset_name` of other images",
        train("dataloader.evaluator.dataset_name=birds_old", more=OLD),
        "d2kd train: dataloader.evaluator.dataset_name is 'birds_old', but dataloader.test reads birds_val: set both "
        "to one dataset.",
    ),
    annotations(
        "an annotation file that is an empty text",
        lambda coco: "\n",
        FILE + "is no JSON (Expecting value: line 2 column 1 (char 1)).",
    ),
    row(
        "an annotation file that is not there",
        train(more=OTHER_VAL, change=lambda folder: (folder / "birds.json").rename(folder / "val.json")),
        FILE + "is not there: correct the path that it was registered with.",
    ),
    annotations(
        "an annotation file that was cut",
        lambda coco: json.dumps(coco)[:300],
        FILE + "is no JSON (Expecting ':' delimiter: line 1 column 301 (char 300)).",
    ),
    annotations(
        "annotations as a list",
        lambda coco: json.dumps(coco["annotations"]),
        FILE + "holds a list, expected a mapping of images, annotations and categories.",
    ),
    annotations("no images", lambda coco: coco.update(images=[], annotations=[]), FILE + "has no images."),
    annotations("no annotations", lambda coco: coco.update(annotations=[]), FILE + "has no annotations."),
    annotations(
        "no annotations, and images without objects kept",
        lambda coco: coco.update(annotations=[]),
        "d2kd train: dataloader.train.dataset has 4 images and no object: check its annotations; images "
        "to learn from without labels are dataloader.train.unlabeled.",
        "dataloader.train.dataset.filter_empty=False",
    ),
    annotations("no categories", lambda coco: coco.pop("categories") and None, FILE + "has no categories."),
    annotations(
        "crowds alone",
        crowds,
        "d2kd train: dataloader.train.dataset cannot be made: No valid data found in birds_train. Images "
        "without objects, or with crowds alone, are left out by filter_empty.",
    ),
    annotations(
        "an annotation without `bbox`",
        lacks("annotations", "bbox"),
        FILE + "has annotation 2 without 'bbox': add it, or remove the annotation.",
    ),
    annotations(
        "an annotation whose `bbox` is null",
        one(bbox=None),
        FILE + "has annotation 2 without 'bbox': add it, or remove the annotation.",
    ),
    annotations(
        "an annotation without `category_id`",
        lacks("annotations", "category_id"),
        FILE + "has annotation 2 without 'category_id': add it, or remove the annotation.",
    ),
    annotations(
        "an annotation without `image_id`",
        lacks("annotations", "image_id"),
        FILE + "has annotation 2 without 'image_id': add it, or remove the annotation.",
    ),
    annotations(
        "an annotation without `id`",
        lacks("annotations", "id"),
        FILE + "has annotation at place 1 without 'id': add it, or remove the annotation.",
    ),
    annotations("two annotations of one `id`", one(id=1), FILE + "has two annotations of id 1: number them."),
    annotations(
        "an annotation of an unknown category",
        one(category_id=9),
        FILE + "has annotation 2 of category_id 9, which its categories lack.",
    ),
    annotations(
        "an annotation whose category is a name",
        one(category_id="tern"),
        FILE + "has annotation 2 of category_id 'tern', which its categories lack.",
    ),
    annotations(
        "an image without `width`",
        lacks("images", "width"),
        FILE + "has image 1 without 'width': add it, or remove the image.",
    ),
    annotations(
        "a box of three numbers",
        one(bbox=[4, 8, 24]),
        "d2kd train: Annotation without an id of {folder}/images/1.png has the box [4, 8, 24], expected four numbers.",
    ),
    annotations(
        "a box of texts",
        one(bbox=["4", "8", "24", "20"]),
        "d2kd train: Annotation without an id of {folder}/images/1.png has the box ['4', '8', '24', "
        "'20'], expected four numbers.",
    ),
    annotations(
        "boxes of NaN",
        all_boxes(float("nan"), 8, 24, 20),
        "d2kd train: dataloader.train.dataset has no box that can be learnt from: 4 not finite (first in "
        "{folder}/images/0.png).",
    ),
    annotations(
        "boxes that are inverted",
        all_boxes(30, 30, -24, -20),
        "d2kd train: dataloader.train.dataset has no box that can be learnt from: 4 without area (first "
        "in {folder}/images/0.png).",
    ),
    annotations(
        "boxes without area",
        all_boxes(4, 8, 0, 20),
        "d2kd train: dataloader.train.dataset has no box that can be learnt from: 4 without area (first "
        "in {folder}/images/0.png).",
    ),
    BadInput(
        "Dataset",
        "public photographs that were not fetched",
        train(more=PHOTOGRAPHS),
        "d2kd train: {folder}/datasets/cards has no train/annotations.json: make the data set with `d2kd data get cards`, "
        "or set the environment variable DETECTRON2_DATASETS to the folder that has cards/.",
    ),
    annotations(
        "boxes outside their images",
        all_boxes(200, 8, 24, 20),
        "d2kd train: dataloader.train.dataset has no box that can be learnt from: 4 outside the image "
        "(first in {folder}/images/0.png).",
    ),
    annotations(
        "boxes as shares of the image",
        all_boxes(0.1, 0.1, 0.4, 0.3),
        "d2kd train: dataloader.train.dataset has no box larger than a pixel: give pixels, COCO's [x, y, "
        "width, height], not shares of the image.",
    ),
    annotations(
        "more classes than `num_classes`",
        lambda coco: coco["categories"].append({"id": 4, "name": "gull"}),
        "d2kd train: birds_train (dataloader.train.dataset) has 4 classes, but "
        "model.student.num_classes is 3: set it, and num_classes of the head, to 4.",
    ),
    annotations(
        "to evaluate: an annotation without `bbox`",
        lacks("annotations", "bbox"),
        "d2kd train: Annotation 2 of birds_val (dataloader.evaluator.dataset_name) has no 'bbox', which "
        "AP needs: add it.",
        evaluate=True,
    ),
    annotations(
        "to evaluate: an annotation without `area`",
        lacks("annotations", "area"),
        "d2kd train: Annotation 2 of birds_val (dataloader.evaluator.dataset_name) has no 'area', which "
        "AP needs: add it.",
        evaluate=True,
    ),
    annotations(
        "to evaluate: an annotation without `iscrowd`",
        lacks("annotations", "iscrowd"),
        "d2kd train: Annotation 2 of birds_val (dataloader.evaluator.dataset_name) has no 'iscrowd', "
        "which AP needs: add it.",
        evaluate=True,
    ),
    row(
        "a validation set without images",
        train(more=OTHER_VAL, change=empty_val),
        "d2kd train: dataloader.test.dataset.names has 'birds_val', whose file val.json has no images.",
    ),
    row(
        "a validation set with its classes in another order",
        train(more=OTHER_VAL, change=val_of_another_order),
        "d2kd train: birds_train (dataloader.train.dataset) and birds_val "
        "(dataloader.test.dataset) give ids to other classes, 0 is 'tern' and 'heron': bring the "
        "categories of their files into one order.",
    ),
    image(
        "an image that is not there",
        lambda path: path.unlink(),
        ENTRY + "No such file or directory: correct the entry, leave it out, or set dataloader.train.on_error=skip.",
    ),
    image(
        "an image that was cut",
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        ENTRY + "OSError: image file is truncated: correct the entry, leave it out, or set "
        "dataloader.train.on_error=skip.",
    ),
    image(
        "an image that is empty",
        lambda path: path.write_bytes(b""),
        ENTRY + "UnidentifiedImageError: cannot identify image file '{folder}/images/1.png': correct the entry, "
        "leave it out, or set dataloader.train.on_error=skip.",
    ),
    image(
        "an image that is a web page",
        lambda path: path.write_bytes(b"<html>Sign in</html>"),
        ENTRY + "UnidentifiedImageError: cannot identify image file '{folder}/images/1.png': correct the entry, "
        "leave it out, or set dataloader.train.on_error=skip.",
    ),
    image(
        "an image of 16 bits",
        pixels(64, 64, kind=np.uint16),
        ENTRY + "ValueError: it has more than 8 bits a channel (I;16), which DatasetMapper does not scale; "
        "convert it to 8: correct the entry, leave it out, or set dataloader.train.on_error=skip.",
    ),
    image(
        "an image of another size than its entry says",
        pixels(64, 32, 3),
        ENTRY + "SizeMismatchError: Mismatched image shape for image {folder}/images/1.png, got (32, 64), expect "
        "(64, 64). Please check the width/height in your annotation: correct the entry, leave it out, or "
        "set dataloader.train.on_error=skip.",
    ),
    row(
        "to evaluate: an image that is not there",
        train(
            "train.init_checkpoint=teacher.pth",
            options=["--eval-only"],
            change=lambda folder: (folder / "images/1.png").unlink(),
        ),
        "d2kd train: dataloader.test.mapper cannot read {folder}/images/1.png: No such file or directory:"
        " correct the entry, or leave it out.",
    ),
    row(
        "`dataloader.train.mapper=null`",
        train("dataloader.train.mapper=null"),
        "d2kd train: dataloader.train.mapper is None, expected what makes a sample of an entry of the "
        "dataset, such as L(DatasetMapper)(...).",
    ),
    mapper(
        "returns None",
        "return None",
        "d2kd train: dataloader.train.mapper returned None for entry 1 of dataloader.train.dataset "
        "({folder}/images/1.png): return a sample, or leave such entries out.",
    ),
    mapper(
        "returns a list",
        "return [sample]",
        "d2kd train: A sample of dataloader.train has a list, expected a mapping whose 'image' is a "
        "tensor (C, H, W): correct what dataloader.train.mapper returns.",
    ),
    mapper(
        "returns no image",
        "del sample['image']; return sample",
        "d2kd train: A sample of dataloader.train has no 'image', expected a mapping whose 'image' is a "
        "tensor (C, H, W): correct what dataloader.train.mapper returns.",
    ),
    mapper(
        "returns an array",
        "return {**sample, 'image': sample['image'].numpy()}",
        "d2kd train: A sample of dataloader.train has 'image' as a ndarray, expected a mapping whose "
        "'image' is a tensor (C, H, W): correct what dataloader.train.mapper returns.",
    ),
    mapper(
        "returns channels last",
        "return {**sample, 'image': sample['image'].permute(1, 2, 0)}",
        "d2kd train: {folder}/images/1.png has 64 channels, but model.student.pixel_mean has 3: set "
        "image_format of dataloader.train.mapper, or pixel_mean, pixel_std and the backbone's in_channels"
        " of the model.",
    ),
    mapper(
        "fails",
        "raise ValueError('no crop has an object')",
        ENTRY + "ValueError: no crop has an object: correct the entry, leave it out, or set "
        "dataloader.train.on_error=skip.",
    ),
    mapper(
        "reads a key that is not there",
        "return sample['imgae']",
        ENTRY + "KeyError: 'imgae': correct the mapper, if the entry is as it should be.",
    ),
    mapper(
        "counts classes from 1",
        "sample['instances'].gt_classes += 1; return sample",
        "d2kd train: An object of {folder}/images/2.png has class 3, but model.student.num_classes is 3, "
        "so that classes are 0 to 2: correct the annotations, or num_classes.",
    ),
    mapper(
        "makes a box without area",
        "sample['instances'].gt_boxes.tensor[:, 2] = sample['instances'].gt_boxes.tensor[:, 0]; return sample",
        "d2kd train: {folder}/images/1.png has a box without area, [6.0, 8.0, 6.0, 29.0] (x0, y0, x1, "
        "y1): correct it in the annotations or in dataloader.train.mapper.",
    ),
    mapper(
        "inverts boxes",
        "sample['instances'].gt_boxes.tensor = sample['instances'].gt_boxes.tensor[:, [2, 3, 0, 1]]; return sample",
        "d2kd train: {folder}/images/1.png has a box that is inverted, [30.0, 29.0, 6.0, 8.0] (x0, y0, "
        "x1, y1): correct it in the annotations or in dataloader.train.mapper.",
    ),
    mapper(
        "makes pixels NaN",
        "return {**sample, 'image': sample['image'] * float('nan')}",
        "d2kd train: Not finite: the student's box predictions. Iteration 0, rank 0: "
        "{folder}/images/1.png has pixels that are not finite; {folder}/images/2.png has pixels that are "
        "not finite: correct or drop these first. Images: {folder}/images/1.png, {folder}/images/2.png. "
        "The batch is saved: `d2kd check --replay {folder}/output/non_finite_iter0_rank0.pth "
        "--config-file {folder}/output/config.yaml` runs it again.",
    ),
    row(
        "`image_format` of another order than the model's",
        train("dataloader.train.mapper.image_format=RGB"),
        "d2kd train: dataloader.train.mapper.image_format is 'RGB', but model.input_format is 'BGR': make them equal.",
    ),
    row(
        "`image_format` of another number of channels",
        train("dataloader.test.mapper.image_format=L"),
        "d2kd train: dataloader.test.mapper.image_format is 'L', images whose channels are 1, but the "
        "model's pixel_mean has 3: make them agree.",
    ),
    row(
        "`images=[5, 5]` of the digits",
        train(more=DIGITS),
        "d2kd train: images=[5, 5] of digits_train: expected 0 <= start < stop <= 8000 (dataset.images).",
    ),
    row(
        "`unlabeled_batch_size` without images for it",
        train("dataloader.train.unlabeled_batch_size=1"),
        "d2kd train: dataloader.train.unlabeled_batch_size is 1, but there are no unlabeled images: check"
        " dataloader.train.unlabeled (names, filters; filter_empty drops images without annotations).",
    ),
    row(
        "`unlabeled_batch_size` of the whole batch",
        train("dataloader.train.unlabeled_batch_size=2", more=UNLABELED),
        "d2kd train: dataloader.train.unlabeled_batch_size is 2, expected a positive multiple of the 1 "
        "process(es) of this run, smaller than dataloader.train.total_batch_size=2, which counts labelled"
        " and unlabeled images.",
    ),
    row(
        "`unlabeled_batch_size=0`",
        train("dataloader.train.unlabeled_batch_size=0", more=UNLABELED),
        "d2kd train: dataloader.train.unlabeled_batch_size is 0, expected a positive multiple of the 1 "
        "process(es) of this run, smaller than dataloader.train.total_batch_size=2, which counts labelled"
        " and unlabeled images.",
    ),
    row(
        "`dataloader.train.unlabeled.names` misspelt",
        train("dataloader.train.unlabeled.names=birds_tset", more=UNLABELED),
        "d2kd train: dataloader.train.unlabeled.names names the dataset 'birds_tset', which is not "
        "registered. Register your own in the config.",
    ),
    row(
        "a sampler that counts classes, and images without labels",
        train(more=SAMPLER),
        "d2kd train: dataloader.train.sampler cannot be made: images without labels have no "
        "'annotations': give them as dataloader.train.unlabeled.",
    ),
    row(
        "`dataloader.train.on_error` misspelt",
        train("dataloader.train.on_error=ignore"),
        "d2kd train: dataloader.train.on_error is 'ignore', expected 'raise' or 'skip'.",
    ),
    row(
        "`dataloader.train.seed=-1`",
        train("dataloader.train.seed=-1"),
        "d2kd train: seed and start must be >= 0, but dataloader.train has seed=-1, start=0.",
    ),
]
