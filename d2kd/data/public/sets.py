"""The public data sets: what they are, where they come from, and what a copy of one has to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SETS", "SPLITS", "PublicSet"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)  # hashable
class PublicSet:
    """
    One data set.

    Attributes:
        name: of its folder, and of its splits: ``NAME_train``, ``NAME_val``, ``NAME_test``.
        classes: in the order of the category ids, which begin with 1.
        about: what it shows, in a sentence.
        repository, commit: where it comes from, on GitHub: ``OWNER/NAME``.
        folders: of that repository, pairs of a folder of images and one of label files.
        labels: how the label files end: ".xml", Pascal VOC's, or ".txt", YOLO's.
        key: an image's file name in the repository -> what decides its split and names it here.
        licence, attribution: as they are to be named.
        licence_text: what LICENSE has to say; None: what the repository's says.
        limits: what a reader of results should know.
        images_sha256: of the repository's images, their paths and bytes.
        annotations_sha256: split -> of its ``annotations.json``: the names and sizes of images, the boxes, the split.
    """

    name: str
    classes: tuple[str, ...]
    about: str
    repository: str
    commit: str
    folders: tuple[tuple[str, str], ...]
    labels: str
    key: Callable[[str], str]
    licence: str
    attribution: str
    licence_text: str | None
    limits: str
    images_sha256: str
    annotations_sha256: Mapping[str, str]

    @property
    def origin(self) -> str:
        """The URL of the repository at the commit."""
        return f"https://github.com/{self.repository}/tree/{self.commit}"


def _stem(file_name: str) -> str:
    return Path(file_name).stem


def _camera_name(file_name: str) -> str:
    """``IMG_2274`` of ``IMG_2274_jpeg_jpg.rf.2f3...jpg``; other names stay whole."""
    return file_name.partition("_jpeg_jpg")[0]


_CARDS = PublicSet(
    name="cards",
    classes=("nine", "ten", "jack", "queen", "king", "ace"),
    about="363 photographs of playing cards taken with a phone, 670 boxes",
    repository="EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10",
    commit="c1645825822622fc75919b6be253779d49678f55",
    folders=(("images/test", "images/test"), ("images/train", "images/train")),
    labels=".xml",
    key=_stem,
    licence="Apache-2.0",
    attribution="photographs and labels by EdjeElectronics, Apache-2.0",
    licence_text=None,
    limits="Pictures taken one after the other at one place can stand in different splits: 2 of the 93 test images "
    "have a training image that correlates above 0.95 with them (16x16 grey thumbnails), 6 above 0.9. Every image has "
    "a card. Cards are never mirrored.",
    images_sha256="0239d4a54a8fc657c7b04aae1d497363b8bb7a54a697495ead06f3c6d7f4d70b",
    annotations_sha256={
        "train": "e5cdfe239e02b4279bc5dbd486b7d16968adc9108c9e8e94146c1ff1b7e9e45d",
        "val": "a26ab5fcbbce671d5287ab43736a8b6af661b822a697c286a7908690dbaca502",
        "test": "382ae7d3a48addd9f67405f7e9096871d7798bcf7511469c7d5acca134ca4f0f",
    },
)

_AQUARIUM = PublicSet(
    name="aquarium",
    classes=("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"),
    about="638 photographs of animals in two aquariums, 4814 boxes",
    repository="Chandra0804/Underwater-Object-Detection-YOLO-V8",
    commit="a54dbe6961dd8cea077fe673ef9e50f779a46afb",
    folders=tuple(
        (f"aquarium_pretrain/{split}/images", f"aquarium_pretrain/{split}/labels")
        for split in ("test", "train", "valid")
    ),
    labels=".txt",
    key=_camera_name,
    licence="CC BY 4.0",
    attribution="Aquarium, by Roboflow, https://public.roboflow.ai/object-detection/aquarium, CC BY 4.0",
    licence_text="""\
Aquarium (raw-1024): images and annotations by Roboflow, Inc.

Licensed under the Creative Commons Attribution 4.0 International licence (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/ (legal code: https://creativecommons.org/licenses/by/4.0/legalcode).

Source: https://public.roboflow.ai/object-detection/aquarium ("Provided by Roboflow, License: CC BY 4.0"; "Images and
annotations are released under a Creative Commons By-Attribution license. You are free to use them for any purposes
personal, commercial, or academic provided you give acknowledgement of their source.")

The licensor offers the material as it is, without warranties of any kind.
""",
    limits="Neighbouring photographs, and frames of one video, show the same tank and can stand in different splits: 2 "
    "of the 157 test images have a training image that correlates above 0.95 with them (16x16 grey thumbnails), 9 "
    "above 0.9. One image has no box. Objects are small: the median box is 24 pixels (square root of its area).",
    images_sha256="5c8127e1521fa5d1cd5cb9565e526a788249a166ff02ebb25396459bfde935ed",
    annotations_sha256={
        "train": "8201ded2793b2ac2593f2fd33673669b3ff8a64427cb58decbf75f3400471d17",
        "val": "6edda3953a2f3dc6198c413223affddef5f877cf4f1f38d272f49e7180138d37",
        "test": "a0369d0c9340284f9eb3e75a3977fa6bbeb5836ce3150eeb35f1918dc6a0e336",
    },
)

_BCCD = PublicSet(
    name="bccd",
    classes=("RBC", "WBC", "Platelets"),
    about="364 micrographs of blood cells, 4886 boxes",
    repository="Shenggan/BCCD_Dataset",
    commit="d272fb14cdff6e473fafeeeba32aba5f560e9e43",
    folders=(("BCCD/JPEGImages", "BCCD/Annotations"),),
    labels=".xml",
    key=_stem,
    licence="MIT",
    attribution="BCCD Dataset, by Shenggan, MIT; images from cosmicad/dataset and akshaylamba/all_CELL_data",
    licence_text=None,
    limits="The labels are incomplete: many red cells, above all overlapping and pale ones, have no box, and edges of "
    "boxes are off by several pixels, which limits AP whatever the model.",
    images_sha256="149d4677383382b2e08afce872372f04c34140ea0adb8127638ed17ff70ea57c",
    annotations_sha256={
        "train": "268e8611f1a229cbd52616234bdcd0752a86eb380e85f3c12aad9b28387065f6",
        "val": "5819837cdea4b12f5e8eb2d489d2cc964211ffbb88035ee070063879a54857e1",
        "test": "d0724fca4a6f9ca225d0421c3a9ef0f6e57ac79fc728ad3659c1c43e4a47e31e",
    },
)

SETS: Mapping[str, PublicSet] = {each.name: each for each in (_CARDS, _AQUARIUM, _BCCD)}
