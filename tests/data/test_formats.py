"""Labels in COCO's, YOLO's and Pascal VOC's files."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.data.formats import class_names, find_format, label_files, read_labelled, register_labelled
from tests.data.labelled import CLASSES, FORMATS, SCENES, write_images, write_labelled


@pytest.fixture
def catalogs():
    """Datasets that a test registers are forgotten."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("format", FORMATS)
class TestEachFormat:
    def test_ordinary_dataset_dicts(self, format, tmp_path):
        dataset = read_labelled(format, *write_labelled(format, tmp_path), CLASSES)
        assert len({item["image_id"] for item in dataset}) == 3
        for item, (name, ((width, height), boxes)) in zip(dataset, SCENES.items(), strict=True):
            assert item["file_name"] == str(tmp_path / "images" / name)
            assert (item["width"], item["height"]) == (width, height)
            found = [
                (x["category_id"], *BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS))
                for x in item["annotations"]
            ]
            assert [box for label in found for box in label] == pytest.approx([x for box in boxes for x in box])
            assert all(x["iscrowd"] == 0 for x in item["annotations"])

    def test_the_format_and_the_classes_are_found(self, format, tmp_path):
        images, labels = write_labelled(format, tmp_path)
        assert find_format(labels) == format
        assert class_names(format, images, labels) == CLASSES

    def test_registered(self, format, tmp_path, catalogs):
        images, labels = write_labelled(format, tmp_path)
        for _ in range(2):  # a config may be read twice, before and after its data are
            register_labelled("birds", format=format, images=images, annotations=labels, classes=CLASSES)
            dataset = get_detection_dataset_dicts("birds", filter_empty=False)
        assert {x["category_id"] for item in dataset for x in item["annotations"]} == {0, 1}
        metadata = MetadataCatalog.get("birds")
        assert metadata.thing_classes == CLASSES
        ids = {3: 0, 17: 1} if format == "coco" else None
        assert metadata.get("thing_dataset_id_to_contiguous_id") == ids

    def test_the_same_name_for_other_data(self, format, tmp_path, catalogs):
        for name in ("first", "second"):
            images, labels = write_labelled(format, tmp_path / name)
            register_labelled("birds", format=format, images=images, annotations=labels, classes=CLASSES)
        assert "second" in get_detection_dataset_dicts("birds")[0]["file_name"]

    def test_labels_that_are_not_there(self, format, tmp_path):
        images, _ = write_labelled(format, tmp_path)
        with pytest.raises((FileNotFoundError, ValueError), match="none"):
            read_labelled(format, images, tmp_path / "none", CLASSES)
        with pytest.raises(FileNotFoundError, match="is not there, expected a json file or the folder"):
            find_format(tmp_path / "none")


class TestCoco:
    def test_crowds(self, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        change_json(labels, lambda content: content["annotations"][0].update(iscrowd=1))
        dataset = read_labelled("coco", images, labels, CLASSES)
        assert [x["iscrowd"] for x in dataset[0]["annotations"]] == [1, 0]

    def test_other_classes(self, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        with pytest.raises(ValueError, match=r"has the categories 'heron', 'tern', expected 'tern', 'heron'\.$"):
            read_labelled("coco", images, labels, CLASSES[::-1])

    def test_a_file_that_is_none(self, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        labels.write_text("{")
        with pytest.raises(ValueError, match=r"labels\.json is no JSON"):
            class_names("coco", images, labels)

    def test_two_categories_of_one_name(self, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        change_json(labels, lambda content: content["categories"][0].update(name="heron"))
        with pytest.raises(ValueError, match="has two classes named 'heron': rename one"):
            class_names("coco", images, labels)

    def test_what_detectron2_refuses(self, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        change_json(labels, lambda content: content["annotations"][0].update(ignore=1))
        with pytest.raises(ValueError, match='labels.json cannot be read: "ignore" in COCO json file is not supported'):
            read_labelled("coco", images, labels, CLASSES)


class TestYolo:
    def test_an_image_without_a_file_has_no_objects(self, tmp_path):
        images, labels = write_labelled("yolo", tmp_path)
        (labels / "b.txt").unlink()
        assert [len(item["annotations"]) for item in read_labelled("yolo", images, labels, CLASSES)] == [2, 0, 1]

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("obj.names", "heron\ntern\n"),
            ("../data.yaml", "train: images\nnames: [heron, tern]\n"),
            ("../data.yml", "names: {1: tern, 0: heron}\n"),
        ],
    )
    def test_where_the_names_are(self, file, text, tmp_path):
        images, labels = write_labelled("yolo", tmp_path)
        (labels / "classes.txt").unlink()
        (labels / file).write_text(text)
        assert class_names("yolo", images, labels) == CLASSES

    @pytest.mark.parametrize("text", ["train: images\n", "names: {1: heron, 2: tern}\n", "names: [\n", "- names\n"])
    def test_a_file_without_names(self, text, tmp_path):
        images, labels = write_labelled("yolo", tmp_path)
        (labels / "classes.txt").unlink()
        (labels / "data.yaml").write_text(text)
        with pytest.raises(FileNotFoundError, match=r"have no names of classes: write them into .*classes\.txt"):
            class_names("yolo", images, labels)

    def test_a_list_of_images(self, tmp_path):
        images, labels = write_labelled("yolo", tmp_path)
        (tmp_path / "train.txt").write_text("images/c.jpg\n\nimages/a.jpg\n")
        found = label_files("yolo", tmp_path / "train.txt", labels)
        assert list(found.items()) == [(images / f"{x}.jpg", labels / f"{x}.txt") for x in "ca"]

    def test_folders_below(self, tmp_path):
        write_images(tmp_path / "images/day")
        (tmp_path / "labels/day").mkdir(parents=True)
        (tmp_path / "labels/day/a.txt").write_text("1 0.5 0.5 0.5 0.5")
        dataset = read_labelled("yolo", tmp_path / "images", tmp_path / "labels", CLASSES)
        assert [len(item["annotations"]) for item in dataset] == [1, 0, 0]


class TestVoc:
    def test_an_image_without_a_file_is_left_out(self, tmp_path):
        images, labels = write_labelled("voc", tmp_path)
        (labels / "b.xml").unlink()
        assert [item["file_name"][-5] for item in read_labelled("voc", images, labels, CLASSES)] == ["a", "c"]
        for path in labels.iterdir():
            path.unlink()
        with pytest.raises(ValueError, match="None of the images of .* has an xml file in .*: the names must be equal"):
            read_labelled("voc", images, labels, CLASSES)

    def test_a_split(self, tmp_path):
        """The folders of Pascal VOC; a class's list has a flag behind each name."""
        images, labels = write_labelled("voc", tmp_path)
        images.rename(tmp_path / "JPEGImages")
        split = tmp_path / "ImageSets/Main/train.txt"
        split.parent.mkdir(parents=True)
        split.write_text("c  1\na -1\n")
        assert [path.name for path in label_files("voc", split, labels)] == ["c.jpg", "a.jpg"]
        split.write_text("d\n")
        with pytest.raises(FileNotFoundError, match="names 'd', but there is neither"):
            label_files("voc", split, labels)

    def test_a_file_that_is_none(self, tmp_path):
        images, labels = write_labelled("voc", tmp_path)
        (labels / "a.xml").write_text("<annotation>")
        with pytest.raises(ValueError, match=r"a\.xml is no XML"):
            class_names("voc", images, labels)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["a.xml", "a.txt"], r"has files of several formats \(yolo, voc\)"),
        (["a.csv"], r"has no \.json, \.txt or \.xml labels"),
        (["classes.txt"], r"has no \.json, \.txt or \.xml labels"),
        (["a.json"], "is a folder with json files, expected one of them"),
    ],
)
def test_a_format_that_is_not_clear(files, says, tmp_path):
    for name in files:
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=says):
        find_format(tmp_path)


def test_no_images(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"has no images \(\.jpg"):
        label_files("yolo", tmp_path / "images", tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there, expected the folder of the images, or a list"):
        label_files("yolo", tmp_path / "none", tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "images/A.PNG")
    assert len(label_files("yolo", tmp_path / "images", tmp_path)) == 1
