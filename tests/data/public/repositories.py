"""Tiny repositories in the layouts of the public data sets, and what converting them has to give."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from d2kd.data.public import SETS

#: Image in the repository -> its split by int(sha1(name without extension), 16) % 100, worked out by hand.
CARDS = {"images/test/IMG_2383.JPG": "train", "images/train/IMG_2387.jpg": "val", "images/train/IMG_2384.jpg": "test"}
AQUARIUM = {
    "aquarium_pretrain/test/images/IMG_2289_jpeg_jpg.rf.0a.jpg": "train",  # of IMG_2289
    "aquarium_pretrain/train/images/IMG_2319_jpeg_jpg.rf.1b.jpg": "val",
    "aquarium_pretrain/valid/images/IMG_2434_jpeg_jpg.rf.2c.jpg": "test",
}
#: In a file: one inside, one over the edges, one whose rest inside the image is under a pixel.
XML = """<annotation><size><width>640</width><height>480</height></size>
<object><name>{name}</name><bndbox><xmin>101</xmin><ymin>50</ymin><xmax>301</xmax><ymax>150</ymax></bndbox></object>
<object><name>ace</name><bndbox><xmin>-20</xmin><ymin>400</ymin><xmax>100</xmax><ymax>500</ymax></bndbox></object>
<object><name>ace</name><bndbox><xmin>639</xmin><ymin>0</ymin><xmax>700</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""
TXT = "1 0.5 0.5 0.25 0.5\n6 0 0.9 0.5 0.4\n0 0.5 0.5 0.001 0.5\n"


def card_boxes(name):
    return [
        (SETS["cards"].classes.index(name) + 1, [50.5, 25, 100, 50], 5000),
        (6, [0, 200, 50, 40], 2000),
    ]


AQUARIUM_BOXES = [(2, [120, 60, 80, 120], 9600), (7, [0, 168, 80, 72], 5760)]


def expected(public_set, split, file_name, boxes):
    """The annotation file of a split of one image."""
    content = {
        "info": {"description": f"{public_set.name}, {split}"},
        "images": [{"id": 1, "file_name": file_name, "width": 320, "height": 240}],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": category,
                "bbox": [float(x) for x in box],
                "area": float(area),
                "iscrowd": 0,
            }
            for i, (category, box, area) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(public_set.classes, start=1)],
    }
    return json.dumps(content, separators=(",", ":"))


def write_images(folder, names):
    """Small ones of one colour each; returns the checksum over them."""
    total = hashlib.sha256()
    for number, name in enumerate(sorted(names)):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 480), (60 * number, 200, 30)).save(path)
        total.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def checksums(texts):
    return {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}


def write_cards(folder):
    """Returns (the data set whose checksums are this repository's, split -> its annotation file)."""
    images = write_images(folder, CARDS)
    texts = {}
    for name, split in CARDS.items():
        path = Path(folder, name)
        path.with_suffix(".xml").write_text(XML.format(name="queen"))
        texts[split] = expected(SETS["cards"], split, f"{path.stem}.jpg", card_boxes("queen"))
    Path(folder, "LICENSE").write_text("the repository's licence")
    Path(folder, "program.py").write_text("raise SystemExit('not to be run')")
    return replace(SETS["cards"], images_sha256=images, annotations_sha256=checksums(texts)), texts


def write_aquarium(folder):
    """See :func:`write_cards`."""
    images = write_images(folder, AQUARIUM)
    texts = {}
    for name, split in AQUARIUM.items():
        path = Path(folder, name.replace("/images/", "/labels/")).with_suffix(".txt")
        path.parent.mkdir()
        path.write_text(TXT)
        camera_name = path.name.partition("_jpeg")[0]
        texts[split] = expected(SETS["aquarium"], split, f"{camera_name}.jpg", AQUARIUM_BOXES)
    return replace(SETS["aquarium"], images_sha256=images, annotations_sha256=checksums(texts)), texts
