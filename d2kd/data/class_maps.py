"""Which of the teacher's classes is which of the student's, by their names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["class_map"]

# Below Detectron2's logger: whichever trainer runs has set that one up, and what is matched must be seen.
logger = logging.getLogger(f"detectron2.{__name__}")


def class_map(
    teacher: str | Sequence[str], student: str | Sequence[str], rename: Mapping[str, str] | None = None
) -> dict[int, int]:
    """
    The student's class for each class of the teacher that has the same name, to the letter; others take no part in
    distillation. In a config, ``cfg.model.teacher.class_map = L(class_map)(teacher="coco_2017_train",
    student="my_train")``: it runs when the teacher is loaded, and not in evaluation.

    Args:
        teacher: name of a dataset that the teacher was trained on, or its classes in the order of their ids. The names
            of a dataset are the ``thing_classes`` of its metadata; the annotations of a registered dataset without
            them are read first, since ``register_coco_instances`` has the names from there.
        student: the same of the student.
        rename: teacher's name -> student's name, of classes that are called otherwise.

    Returns:
        teacher's class id -> student's class id, in the order of the teacher's ids.

    Raises:
        ValueError: no such dataset, one without class names, a name that stands there twice, a name in ``rename``
            that is not there, several classes of the teacher for one of the student, or none at all.
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
    for our_id, count in Counter(matches.values()).items():
        if count > 1:
            several = [their_names[a] for a, b in matches.items() if b == our_id]
            raise ValueError(
                f"class_map() found the student's {our_names[our_id]!r} in {' and '.join(map(repr, several))} of the "
                "teacher, but each class of the student can be one of the teacher's: change rename, or give an id map."
            )
    if not matches:
        raise ValueError(
            f"class_map() found no class of the student ({_listed(our_names)}) among the teacher's "
            f"({_listed(their_names)}): give rename={{teacher's name: student's name}} for those spelt otherwise."
        )
    unknown = [name for index, name in enumerate(our_names) if index not in matches.values()]
    logger.info(
        "Class map: %d of the student's %d classes are among the teacher's %d: %s. %s",
        len(matches),
        len(our_names),
        len(their_names),
        ", ".join(f"{their_names[a]} ({a}) -> {our_names[b]} ({b})" for a, b in matches.items()),
        f"The teacher does not know {', '.join(unknown)}." if unknown else "It knows all of them.",
    )
    return matches


def _names(source: str | Sequence[str], who: str) -> list[str]:
    names = _names_of_dataset(source, who) if isinstance(source, str) else list(source)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class_map()'s {who} has classes of one name: {', '.join(map(repr, twice))}; give an id map.")
    return names


def _names_of_dataset(dataset: str, who: str) -> list[str]:
    known = {*MetadataCatalog.list(), *DatasetCatalog.list()}  # MetadataCatalog.get would add a name that is not there
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
