"""Matching the teacher's classes to the student's by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["class_map"]

# A child of Detectron2's logger, which every trainer sets up: the map must be seen in the log.
logger = logging.getLogger(f"detectron2.{__name__}")


def class_map(
    teacher: str | Sequence[str], student: str | Sequence[str], rename: Mapping[str, str] | None = None
) -> dict[int, int]:
    """
    Match each class of the teacher to the student's class of exactly the same name; the others take no part in
    distillation, and several that ``rename`` gives one name are merged. In a config, ``cfg.model.teacher.class_map =
    L(class_map)(teacher="coco_2017_train", student="my_train")``: it is called when the teacher is loaded, and not in
    evaluation.

    Args:
        teacher: name of a dataset that the teacher was trained on, or its class names in the order of their ids. The
            names of a dataset are the ``thing_classes`` of its metadata; if a registered dataset has none yet, its
            annotations are read first, from which ``register_coco_instances`` takes them.
        student: the same for the student.
        rename: teacher's name -> student's name, for classes that have different names, such as ``{"car": "vehicle",
            "truck": "vehicle"}``.

    Returns:
        teacher's class id -> student's class id, in the order of the teacher's ids.

    Raises:
        ValueError: an unknown dataset, one without class names, two classes of one name, an unknown name in
            ``rename``, or no class in common.
    """
    their_names, our_names = _names(teacher, "teacher"), _names(student, "student")
    rename = dict(rename or {})
    for theirs, ours in rename.items():
        _check_known(theirs, their_names, "teacher")
        _check_known(ours, our_names, "student")
    our_ids = {name: index for index, name in enumerate(our_names)}
    matches = {
        index: our_id
        for index, name in enumerate(their_names)
        if (our_id := our_ids.get(rename.get(name, name))) is not None
    }
    if not matches:
        raise ValueError(
            f"class_map() found no class of the student ({_listed(our_names)}) among the teacher's "
            f"({_listed(their_names)}): give rename={{teacher's name: student's name}} for those spelt otherwise."
        )
    unknown = [name for index, name in enumerate(our_names) if index not in matches.values()]
    logger.info(
        "Class map: %d of the student's %d classes are among the teacher's %d: %s. %s",
        len(set(matches.values())),
        len(our_names),
        len(their_names),
        ", ".join(f"{their_names[a]} ({a}) -> {our_names[b]} ({b})" for a, b in matches.items()),
        f"The teacher does not know {', '.join(unknown)}." if unknown else "It knows all of them.",
    )
    return matches


def _names(classes: str | Sequence[str], who: str) -> list[str]:
    names = _names_of_dataset(classes, who) if isinstance(classes, str) else list(classes)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class_map()'s {who} has classes of one name: {', '.join(map(repr, twice))}; give an id map.")
    return names


def _names_of_dataset(dataset: str, who: str) -> list[str]:
    known = {*MetadataCatalog.list(), *DatasetCatalog.list()}  # MetadataCatalog.get would add an unknown name
    if dataset not in known:
        raise ValueError(
            f"class_map()'s {who} is {dataset!r}, which is no registered dataset{_hint(dataset, known)} (or give the "
            "list of its classes)."
        )
    if "thing_classes" not in MetadataCatalog.get(dataset).as_dict() and dataset in DatasetCatalog.list():
        DatasetCatalog.get(dataset)
    names = MetadataCatalog.get(dataset).as_dict().get("thing_classes")
    if not names:
        raise ValueError(
            f"class_map()'s {who} is {dataset!r}, whose metadata has no thing_classes: set them by "
            f"MetadataCatalog.get({dataset!r}).set(thing_classes=[...]), or give the list of its classes."
        )
    return list(names)


def _check_known(name: str, names: Sequence[str], who: str) -> None:
    if name not in names:
        raise ValueError(f"class_map()'s rename has {name!r}, which is no class of the {who}'s{_hint(name, names)}.")


def _hint(name: str, names: Sequence[str] | set[str]) -> str:
    near = get_close_matches(name, names)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    """The first ten: datasets have hundreds."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
