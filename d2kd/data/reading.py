"""Why a dataset or its loader cannot be made, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["DatasetError", "check_registered", "coco_content", "fault_of_datasets"]

_ID, _NUMBER = (int, float, str), (int, float)
#: What is read of each entry of a COCO file's lists, and its types.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "categories": {"id": _ID, "name": _ID},
    "images": {"id": _ID, "file_name": (str,), "width": _NUMBER, "height": _NUMBER},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID, "bbox": (list,)},
}
#: What an annotation may have: 0 or 1.
_FLAGS = ("iscrowd", "ignore")


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
        if file is None or "://" in file:
            continue
        if not Path(file).is_file():
            return f"{key} has {name!r}, whose file {file} is not there: correct the path that it was registered with."
        try:
            coco_content(file)
        except DatasetError as error:
            return f"{key} has {name!r}, whose file {error}"
    return None


def coco_content(file: str | Path) -> dict[str, Any]:
    """
    What a file in COCO's format holds.

    Raises:
        OSError: it cannot be opened.
        DatasetError: it is no JSON, or not of that format; the message begins with the file's name.
    """
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise DatasetError(f"{file} is no JSON ({error}).") from error
    if fault := _fault_of_content(content):
        raise DatasetError(f"{file} {fault}.")
    return content


def _fault_of_content(content: Any) -> str | None:
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


def _fault_of_entries(kind: str, entries: Sequence[Any], fields: Mapping[str, tuple[type, ...]]) -> str | None:
    one, seen = {"categories": "category"}.get(kind, kind[:-1]), set()
    for place, entry in enumerate(entries):
        found: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        for field, types in fields.items():
            value = found.get(field)
            if not isinstance(value, types):
                fault = f"without {field!r}" if value is None else f"whose {field!r} is {value!r}"
                remedy = "add" if value is None else "correct"
                return f"has {one} {found.get('id', f'at place {place}')} {fault}: {remedy} it, or remove the {one}"
        for flag in _FLAGS if kind == "annotations" else ():
            if found.get(flag) not in (None, 0, 1):
                return f"has annotation {found['id']} whose {flag!r} is {found[flag]!r}, expected 0 or 1"
        if found["id"] in seen:
            return f"has two {kind} of id {found['id']!r}: number them"
        seen.add(found["id"])
    if len({isinstance(each, str) for each in seen}) > 1:
        return f"has {kind} whose ids are numbers and text: take one kind"
    return None
