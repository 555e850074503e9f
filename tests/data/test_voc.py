"""Pascal VOC's xml files."""

import pytest
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.data.voc import read_voc

OBJECT = (
    "<object><name>{name}</name>"
    "<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def voc(*objects, size="<size><width>40</width><height>30</height><depth>3</depth></size>"):
    return f"<annotation><filename>else.jpg</filename>{size}{''.join(objects)}</annotation>"


def an_object(*box, name="cat"):
    return OBJECT.format(*box, name=name)


@pytest.fixture
def read(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "image.jpg")

    def read(text, classes=("dog", "cat")):
        (tmp_path / "image.xml").write_text(text)
        return read_voc(tmp_path / "image.xml", tmp_path / "image.jpg", classes)

    return read


class TestReadVoc:
    def test_objects(self, read, tmp_path):
        item = read(voc(an_object(1, 2, 11, 22), an_object(0.5, 0, 40, 30, name=" dog\n")))
        assert item == {
            "file_name": str(tmp_path / "image.jpg"),
            "width": 40,
            "height": 30,
            "annotations": [
                {"bbox": [1, 2, 11, 22], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0},
                {"bbox": [0.5, 0, 40, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0},
            ],
        }

    @pytest.mark.parametrize("width_height", [("", ""), (0, 0), ("40.0", 30)])
    def test_no_objects_and_sizes_as_tools_write_them(self, read, width_height):
        size = "<size><width>{}</width><height>{}</height></size>".format(*width_height)
        assert read(voc(size=size))["annotations"] == read(voc(size=""))["annotations"] == []

    def test_difficult_objects(self, read):
        marks = ["1", " true ", "0", "Unspecified"]
        objects = [an_object(1, 2, 11, 22).replace("<bnd", f"<difficult>{mark}</difficult><bnd") for mark in marks]
        assert [x.get("difficult") for x in read(voc(*objects))["annotations"]] == [True, True, None, None]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("<annotation><object>", r"image\.xml is no XML: no element found"),
            ("", r"image\.xml is no XML: no element found"),
            (
                '<?xml version="1.0" encoding="gbk"?><annotation/>',
                r"image\.xml is no XML: multi-byte encodings are not",
            ),
            ('<?xml version="1.0" encoding="none"?><annotation/>', r"image\.xml is no XML: unknown encoding: none"),
            ("<html/>", r"image\.xml begins with <html>, expected the <annotation> of Pascal VOC"),
            (voc(an_object(1, 2, 3, 4, name="cow")), "object 1 is of class 'cow', expected one of 'dog', 'cat'"),
            (voc("<object/>"), "object 1 is of class '', expected one of"),
            (voc(an_object(1, 2, 3, 4), an_object(1, 2, "x", 4)), r"object 2 has the bndbox \['1', '2', 'x', '4'\]"),
            (voc("<object><name>cat</name></object>"), r"object 1 has the bndbox \['', '', '', ''\], expected the num"),
            (
                voc(size="<size><width>30</width><height>40</height></size>"),
                r"30x40 pixels, but .* has 40x30",
            ),
        ],
    )
    def test_a_broken_file_is_refused(self, read, text, says):
        with pytest.raises(ValueError, match=says):
            read(text)

    def test_missing_files(self, read, tmp_path):
        read(voc())
        for path, image in (("none.xml", "image.jpg"), ("image.xml", "none.jpg")):
            with pytest.raises(FileNotFoundError):
                read_voc(tmp_path / path, tmp_path / image, ["cat"])
