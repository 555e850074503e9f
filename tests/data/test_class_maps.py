"""Class maps by name: between lists of names, through dataset metadata, as a node of a config."""

import json
import logging

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import OmegaConf

from d2kd.data import class_map

TEACHER = ["person", "bicycle", "car", "dog"]


@pytest.fixture
def dataset():
    """Registers datasets, which are forgotten after the test."""
    added = []

    def register(name, read=None, **metadata):
        added.append(name)
        if read is not None:
            DatasetCatalog.register(name, read)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    for name in added:
        MetadataCatalog.pop(name, None)
        DatasetCatalog.pop(name, None)


def test_equal_names_have_each_others_ids():
    assert class_map(TEACHER, ["dog", "cat", "person"]) == {0: 2, 3: 0}
    assert list(class_map(TEACHER, ["dog", "person"])) == [0, 3]  # in the order of the teacher's
    assert class_map(TEACHER, TEACHER) == {0: 0, 1: 1, 2: 2, 3: 3}
    with pytest.raises(ValueError, match="no class of the student"):
        class_map(["Dog"], ["dog"])  # to the letter


def test_rename():
    names = ["auto", "dog", "bicycle"]
    assert class_map(TEACHER, names) == {1: 2, 3: 1}
    assert class_map(TEACHER, names, rename={"car": "auto"}) == {1: 2, 2: 0, 3: 1}
    # The teacher's "dog" is called "auto" here: then it is no dog.
    assert class_map(TEACHER, names, rename={"dog": "auto"}) == {1: 2, 3: 0}


@pytest.mark.parametrize(
    "rename, said",
    [
        ({"carr": "auto"}, "rename has 'carr', which is no class of the teacher's; did you mean car"),
        ({"auto": "car"}, "rename has 'auto', which is no class of the teacher's"),
        ({"car": "autoo"}, "rename has 'autoo', which is no class of the student's; did you mean auto"),
    ],
)
def test_a_name_that_is_not_there(rename, said):
    with pytest.raises(ValueError, match=said):
        class_map(TEACHER, ["auto", "dog"], rename=rename)


@pytest.mark.parametrize(
    "rename, expected", [({"car": "dog"}, {2: 0, 3: 0}), ({"car": "van", "bicycle": "van"}, {1: 1, 2: 1, 3: 0})]
)
def test_several_classes_of_the_teacher_for_one(rename, expected, caplog):
    with caplog.at_level(logging.INFO, logger="detectron2"):
        assert class_map(TEACHER, ["dog", "van"], rename=rename) == expected
    assert f"{len(set(expected.values()))} of the student's 2 classes" in caplog.text


def test_nothing_in_common():
    names = [f"bird{i}" for i in range(12)]
    with pytest.raises(ValueError, match=r"student \(bird0, .*bird9 and 2 more\) among .* \(person, .*dog\): give"):
        class_map(TEACHER, names)


@pytest.mark.parametrize("pair, who", [((["a", "b", "a"], ["a"]), "teacher"), ((["a"], ["a", "a"]), "student")])
def test_a_name_that_stands_there_twice(pair, who):
    with pytest.raises(ValueError, match=f"class_map.*'s {who} has classes of one name: 'a'"):
        class_map(*pair)


# ---- datasets --------------------------------------------------------------------------------------------------------


def test_names_of_datasets(dataset):
    ours = dataset("tests_ours", thing_classes=["zebra", "unicorn", "person"])
    found = class_map("coco_2017_train", ours)  # its metadata is there without its files
    coco = MetadataCatalog.get("coco_2017_train").thing_classes
    assert found == {coco.index("person"): 2, coco.index("zebra"): 0}
    assert class_map(["unicorn"], ours) == {0: 1}


def test_names_that_come_with_the_annotations(dataset, tmp_path):
    """As of ``register_coco_instances``, in the order in which Detectron2 numbers them."""
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "person"}]
    (tmp_path / "x.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    dataset("tests_coco")
    register_coco_instances("tests_coco", {}, str(tmp_path / "x.json"), str(tmp_path))
    assert class_map(TEACHER, "tests_coco") == {0: 0, 3: 1}


def test_annotations_are_not_read_where_the_names_are_known(dataset):
    def read():
        raise AssertionError("read")

    assert class_map(TEACHER, dataset("tests_known", read, thing_classes=["dog"])) == {3: 0}


def test_an_unknown_dataset_is_not_added(dataset):
    dataset("tests_birds", thing_classes=["dog"])
    with pytest.raises(ValueError, match="student is 'tests_bird', which is no registered dataset; .*tests_birds"):
        class_map(TEACHER, "tests_bird")
    assert "tests_bird" not in MetadataCatalog.list()


@pytest.mark.parametrize("metadata", [{}, {"thing_classes": []}])
def test_a_dataset_without_names(dataset, metadata):
    name = dataset("tests_nameless", lambda: [], **metadata)
    with pytest.raises(ValueError, match="teacher is 'tests_nameless', whose metadata has no thing_classes: set them"):
        class_map(name, TEACHER)


# ---- configs and logs ------------------------------------------------------------------------------------------------


def test_a_node_of_a_config(tmp_path):
    cfg = OmegaConf.create(
        {"x": L(class_map)(teacher=TEACHER, student=["auto", "dog"], rename={"car": "auto"})},
        flags={"allow_objects": True},
    )
    LazyConfig.save(cfg, str(tmp_path / "x.yaml"))
    for each in (cfg, LazyConfig.load(str(tmp_path / "x.yaml"))):
        assert instantiate(each.x) == {2: 0, 3: 1}


def test_what_is_matched_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="detectron2"):
        class_map(TEACHER, ["auto", "dog", "cat", "eel"], rename={"car": "auto"})
        class_map(TEACHER, ["dog"])
    assert [record.getMessage() for record in caplog.records] == [
        "Class map: 2 of the student's 4 classes are among the teacher's 4: car (2) -> auto (0), dog (3) -> dog (1). "
        "The teacher does not know cat, eel.",
        "Class map: 1 of the student's 1 classes are among the teacher's 4: dog (3) -> dog (0). It knows all of them.",
    ]
