"""Labels in COCO's, YOLO's and Pascal VOC's files."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from d2kd.data.formats import class_names, find_format, label_files, read_labelled, register_labelled, unused_labels
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

    def test_classes_are_found_by_name(self, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        dataset = read_labelled("coco", images, labels, ["gull", *CLASSES[::-1]])
        assert [x["category_id"] for item in dataset for x in item["annotations"]] == [2, 1, 1, 2]
        with pytest.raises(ValueError, match=r"has the category 'heron', expected one of 'tern', 'gull'\.$"):
            read_labelled("coco", images, labels, ["tern", "gull"])

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: [x.pop(key) for x in content["annotations"] for key in ("area", "iscrowd")],
            lambda content: [x.update(segmentation=[[]]) for x in content["annotations"]],
            lambda content: (
                [x.update(id=f"c{x['id']}") for x in content["categories"]]
                + [x.update(category_id=f"c{x['category_id']}") for x in content["annotations"]]
            ),
            lambda content: (
                [x.update(id=str(x["id"])) for x in content["images"]],
                [x.update(image_id=str(x["image_id"])) for x in content["annotations"]],
            ),
            lambda content: content.update(
                categories=content["categories"][1:],
                annotations=[x for x in content["annotations"] if x["category_id"] == 3],
            ),
            # Of each image the first box alone counts.
            lambda content: [x.update(ignore=1) for x in content["annotations"][1:2]],
        ],
        ids=["no area", "empty outlines", "text as class ids", "text as image ids", "a class is missing", "ignored"],
    )
    def test_what_is_read_is_evaluated(self, change, tmp_path, catalogs):
        """Without a traceback; a detector that finds all has an AP of 100."""
        images, labels = write_labelled("coco", tmp_path)
        change_json(labels, change)
        source = {"format": "coco", "images": images, "annotations": labels, "classes": CLASSES}
        register_labelled("birds", **source, ignore_difficult=True)
        evaluator = COCOEvaluator("birds", tasks=["bbox"], output_dir=str(tmp_path))
        evaluator.reset()
        for item in get_detection_dataset_dicts("birds"):
            found = [x for x in item["annotations"] if not x["iscrowd"]]
            boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in found]
            instances = Instances((item["height"], item["width"]))
            instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
            instances.pred_classes = torch.tensor([x["category_id"] for x in found])
            instances.scores = torch.ones(len(found))
            evaluator.process([item], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)

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

    @pytest.mark.parametrize(
        ("kind", "entry", "says"),
        [
            ("images", {"width": "64"}, "image 5 whose 'width' is '64': correct it, or remove the image"),
            ("images", {"file_name": 5}, "image 5 whose 'file_name' is 5"),
            ("annotations", {"category_id": [3]}, r"annotation 1 whose 'category_id' is \[3\]"),
            ("annotations", {"bbox": None}, "annotation 1 without 'bbox': add it, or remove the annotation"),
            ("images", {"id": "5"}, "images whose ids are numbers and text: take one kind"),
            ("annotations", {"iscrowd": "0"}, "annotation 1 whose 'iscrowd' is '0', expected 0 or 1"),
        ],
    )
    def test_entries_of_other_types(self, kind, entry, says, tmp_path):
        images, labels = write_labelled("coco", tmp_path)
        change_json(labels, lambda content: content[kind][0].update(entry))
        with pytest.raises(ValueError, match=f"labels.json has {says}"):
            read_labelled("coco", images, labels, CLASSES)

    def test_annotations_of_images_that_are_not_listed(self, tmp_path, caplog):
        images, labels = write_labelled("coco", tmp_path)
        change_json(labels, lambda content: content["annotations"][0].update(image_id="5"))
        dataset = read_labelled("coco", images, labels, CLASSES)
        assert [len(item["annotations"]) for item in dataset] == [1, 1, 1]
        assert caplog.messages == [f"{labels} has 1 annotations of images that it does not list: left out."]


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
            ("../data.yml", 'names: {"0": heron, "1": tern}\n'),
            ("classes.txt", "\ufeffheron\r\ntern\r\n\r\n"),
        ],
    )
    def test_where_the_names_are(self, file, text, tmp_path):
        images, labels = write_labelled("yolo", tmp_path)
        (labels / "classes.txt").unlink()
        (labels / file).write_text(text)
        assert class_names("yolo", images, labels) == CLASSES

    def test_names_are_those_that_are_written(self, tmp_path):
        """In YAML, "no" is a truth value, and 07 a number."""
        (tmp_path / "data.yaml").write_text("names: [yes, no, 07]\n")
        assert class_names("yolo", tmp_path, tmp_path) == ["yes", "no", "07"]

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"h\xe9ron\ntern\n", "classes.txt, the names of the classes, is not in UTF-8"),
            (b"heron\n\ntern\n", "classes.txt has an empty line between the names"),
            (b"\nheron\n", "classes.txt has an empty line between the names"),
        ],
    )
    def test_names_that_are_not_clear(self, content, says, tmp_path):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(ValueError, match=says):
            class_names("yolo", tmp_path, tmp_path)

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

    def test_a_list_of_images_in_several_folders(self, tmp_path):
        for part in ("day", "night"):
            images, labels = write_labelled("yolo", tmp_path / part)
            for folder, target in ((images, "images"), (labels, "labels")):
                (tmp_path / target).mkdir(exist_ok=True)
                folder.rename(tmp_path / target / part)
        (tmp_path / "train.txt").write_text("\ufeff./images/day/a.jpg\n./images/night/a.jpg\n")
        found = label_files("yolo", tmp_path / "train.txt", tmp_path / "labels")
        assert list(found.values()) == [tmp_path / f"labels/{part}/a.txt" for part in ("day", "night")]
        with pytest.raises(ValueError, match="day/a.jpg and .*night/a.jpg have one label file, .*day/a.txt: rename"):
            label_files("yolo", tmp_path / "train.txt", tmp_path / "labels/day")

    def test_files_that_do_not_belong_together(self, tmp_path):
        images, labels = write_labelled("yolo", tmp_path)
        (images / "._a.jpg").write_text("of a Mac")
        (images / "folder.jpg").mkdir()
        (images / "b.jpg").rename(images / "b.gif")
        assert [path.name for path in label_files("yolo", images, labels)] == ["a.jpg", "c.jpg"]
        assert unused_labels("yolo", images, labels) == 1  # of b; classes.txt is none
        (images / "b.gif").rename(images / "a.png")
        with pytest.raises(ValueError, match="a.jpg and .*a.png have one label file, .*a.txt: rename one of the image"):
            label_files("yolo", images, labels)

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
        (images := tmp_path / "JPEGImages").joinpath("a.jpg").rename(images / "a 1.jpg")
        write_images(images)
        split.write_text("a 1\na 1 1\n")
        assert [path.name for path in label_files("voc", split, labels)] == ["a 1.jpg"]
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
