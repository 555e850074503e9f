"""Why a dataset or its loader cannot be made, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["DatasetError", "check_registered", "fault_of_datasets", "fault_of_file"]

#: What Detectron2 reads of each entry of a COCO file's lists.
_FIELDS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


class DatasetError(ValueError):
    """A dataset that cannot be read; its message says why, and where it stands in the config."""


def check_registered(names: Iterable[str], key: str) -> None:
    """
    Args:
        names: of datasets.
        key: where they stand in the config.

    Raises:
        DatasetError: one is not registered; the nearest names are suggested.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, 2, 0.8)
            hint = f": did you mean {' or '.join(near)}?" if near else "."
            raise DatasetError(
                f"{key} names the dataset {name!r}, which is not registered{hint} Register your own in the config."
            )


def fault_of_datasets(names: str | Sequence[str] | None, key: str) -> str | None:
    """
    What is wrong with registered datasets, by their names and their files in COCO's format; looked for after they could
    not be read.

    Args:
        names: of datasets.
        key: where they stand in the config.

    Returns:
        a sentence; None: nothing was found.

    Raises:
        DatasetError: see :func:`check_registered`.
    """
    if not names:
        return f"{key} is {names!r}, expected the name of a registered dataset, or a list of such."
    names = [names] if isinstance(names, str) else list(names)
    check_registered(names, key)
    for name in names:
        file = MetadataCatalog.get(name).get("json_file")
        if file is not None and (fault := fault_of_file(file)):
            return f"{key} has {name!r}, whose file {file} {fault}."
    return None


def fault_of_file(file: str) -> str | None:
    """What is wrong with a file in COCO's format, the end of a sentence; None: nothing was found."""
    path = Path(file)
    if "://" in file:
        return None
    if not path.is_file():
        return "is not there: correct the path that it was registered with"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        return f"is no JSON ({error})"
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}, expected a mapping of images, annotations and categories"
    for kind, fields in _FIELDS.items():
        entries = content.get(kind)
        if not isinstance(entries, list) or not entries:
            return f"has no {kind}"
        if fault := _fault_of_entries(kind, entries, fields):
            return fault
    known = {entry["id"] for entry in content["categories"]}
    for entry in content["annotations"]:
        if entry["category_id"] not in known:
            return f"has annotation {entry['id']} of category_id {entry['category_id']!r}, which its categories lack"
    return None


def _fault_of_entries(kind: str, entries: Sequence[Any], fields: Sequence[str]) -> str | None:
    one, seen = {"categories": "category"}.get(kind, kind[:-1]), set()
    for place, entry in enumerate(entries):
        found: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        for field in fields:
            if found.get(field) is None:
                return (
                    f"has {one} {found.get('id', f'at place {place}')} without {field!r}: add it, or remove the {one}"
                )
        if found["id"] in seen:
            return f"has two {kind} of id {found['id']!r}: number them"
        seen.add(found["id"])
    return None
