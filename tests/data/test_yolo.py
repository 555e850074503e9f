"""YOLO's text files."""

import pytest
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.data.yolo import read_yolo


@pytest.fixture
def read(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "image.jpg")

    def read(text):
        (tmp_path / "image.txt").write_text(text)
        return read_yolo(tmp_path / "image.txt", tmp_path / "image.jpg", num_classes=2)

    return read


class TestReadYolo:
    def test_objects(self, read, tmp_path):
        item = read("1 0.5 0.5 0.5 0.25\n\n0 0.75 0.25 0.5 0.5")
        assert item == {
            "file_name": str(tmp_path / "image.jpg"),
            "width": 40,
            "height": 20,
            "annotations": [
                {"bbox": [10, 7.5, 30, 12.5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0},
                {"bbox": [20, 0, 40, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0},
            ],
        }

    def test_a_byte_order_mark(self, read):
        assert len(read("\ufeff1 0.5 0.5 0.5 0.25\r\n0 0.5 0.5 0.5 0.25\r\n")["annotations"]) == 2

    def test_rounding_of_other_tools(self, read):
        (annotation,) = read("0 0.5 0.5 1.0000001 1")["annotations"]
        assert annotation["bbox"] == pytest.approx([0, 0, 40, 20], abs=1e-4)

    @pytest.mark.parametrize("text", ["", "\n", "  \n"])
    def test_no_objects(self, read, text):
        assert read(text)["annotations"] == []

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("0 0.5 0.5 0.5", "line 2 is '0 0.5 0.5 0.5', expected five numbers"),
            ("0 0.1 0.1 0.9 0.1 0.9 0.9", "expected five numbers"),  # an outline
            ("cat 0.5 0.5 0.5 0.5", "expected five numbers"),
            ("\x89PNG", "expected five numbers"),
            ("2 0.5 0.5 0.5 0.5", r"line 2 has the class 2, expected 0 to 1\.$"),
            ("-1 0.5 0.5 0.5 0.5", "has the class -1"),
            ("0.5 0.5 0.5 0.5 0.5", "has the class 0.5"),
            ("nan 0.5 0.5 0.5 0.5", "has the class nan"),
            ("0 0.5 0.5 1.01 0.5", "expected numbers from 0 to 1"),
            ("0 20 10 20 5", r"has the box \[20.0, 10.0, 20.0, 5.0\], expected numbers from 0 to 1"),
            ("0 0.5 0.5 nan 0.5", r"expected numbers from 0 to 1"),
            ("0 0.5 0.5 -0.5 0.5", r"expected numbers from 0 to 1"),
        ],
    )
    def test_a_broken_line_is_refused(self, read, line, says):
        with pytest.raises(ValueError, match=says):
            read(f"0 0.5 0.5 0.5 0.5\n{line}\n")

    def test_missing_files(self, read, tmp_path):
        read("")
        for path, image in (("none.txt", "image.jpg"), ("image.txt", "none.jpg")):
            with pytest.raises(FileNotFoundError):
                read_yolo(tmp_path / path, tmp_path / image, num_classes=1)
