"""What `d2kd init` says of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from d2kd.data.formats import FORMATS, label_files, unused_labels
from d2kd.data.survey import Survey

__all__ = ["report"]

_MOST_NAMES = 20
#: What becomes in training, and in an evaluation, of ...
_FATES = {
    "train": {
        "crowds": "not learnt from",
        "difficult": "learnt from as the others are",
        "over_edge": "cut there",
        "broken": "left out in training",
    },
    "val": {
        "crowds": "ignored in an evaluation",
        "difficult": "ignored in an evaluation",
        "over_edge": "evaluated as they are: mend them",
        "broken": "missed by every detector: mend them",
    },
}


def report(
    format: str, data: Mapping[str, tuple[Path, Path]], found: Mapping[str, Survey], classes: Sequence[str]
) -> str:
    """
    Args:
        data, found: of "train" and "val".
    """
    parts = [_of_split(split, found[split], data[split], format, classes) for split in found]
    known = set(found["train"].digests)
    if shared := sum(digest in known for digest in found["val"].digests):
        parts.append(f"  {shared} of these images are in train, too, as equal files: AP on them says little of others")
    return "\n".join(parts)


def _of_split(split: str, found: Survey, data: tuple[Path, Path], format: str, classes: Sequence[str]) -> str:
    fates = _FATES[split]
    areas = found.box_sizes
    small, large = int((areas < 32).sum()), int((areas >= 96).sum())
    width, height = (int(x) for x in np.median(found.sizes, axis=0))
    counts = dict(zip(classes, np.bincount(found.labels, minlength=len(classes)).tolist()))
    lines = [
        f"{split}: {len(found.sizes)} images in {data[0]}, {format}, {width} x {height} pixels (median)",
        f"  {len(areas)} boxes: {_first([f'{name} {count}' for name, count in counts.items() if count])}",
        f"  by size: {small} small (under 32 pixels, the root of the area), {len(areas) - small - large} medium, "
        f"{large} large (from 96); half are under {np.median(areas):.0f}",
    ]
    if without := [name for name, count in counts.items() if not count]:
        lines.append(f"  {len(without)} of {len(classes)} classes without a box: {_first(without)}")
    if format != "coco":
        ending = FORMATS[format]
        missing = sum(labels is None for labels in label_files(format, *data).values())
        fate = "left out" if format == "voc" else "without objects"
        lines += [f"  {missing} images have no {ending} file of their name: {fate}"] * (missing > 0)
        unused = unused_labels(format, *data) if data[0].is_dir() else 0
        lines += [f"  {unused} {ending} files have no image of their name, and are not read"] * (unused > 0)
    if found.empty:
        lines.append(f"  {found.empty} images without a box")
    if found.crowds:
        lines.append(f"  {found.crowds} crowd regions, {fates['crowds']}")
    if found.difficult:
        lines.append(f"  {found.difficult} objects that their labels mark as difficult, {fates['difficult']}")
    if found.over_edge:
        lines.append(f"  {found.over_edge} boxes reach over the edge of their image, {fates['over_edge']}")
    for kind, (count, first) in found.broken.items():
        lines.append(f"  {count} further boxes {kind}, {fates['broken']} (first in {first})")
    if found.grey:
        lines.append(f"  {found.grey} grey images, read with three equal channels")
    if found.turned:
        lines.append(f"  {found.turned} images that their EXIF rotates, read upright")
    if repeated := len(found.digests) - len(set(found.digests)):
        lines.append(f"  {repeated} images repeat another one: their files are equal")
    return "\n".join(lines)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else "")
