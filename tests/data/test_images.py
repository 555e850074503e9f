"""The size of an image file."""

import pytest
from detectron2.data.detection_utils import read_image
from PIL import ExifTags, Image

from d2kd.data.images import image_size


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8, 9])
def test_the_size_is_that_of_the_mapper(tmp_path, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (8, 6)).save(tmp_path / "image.jpg", exif=exif)
    height, width, _ = read_image(str(tmp_path / "image.jpg"), "BGR").shape
    assert image_size(tmp_path / "image.jpg") == (width, height)


def test_what_pillow_fails_on_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 6)).save(path, format="JPEG")
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"image\.png cannot be read: Image size .48 p"),
    ):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
        image_size(path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"image\.png cannot be read: Truncated File Read\.$"):
        image_size(path)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "image.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"image\.jpg is no image that Pillow can read\.$"):
        image_size(tmp_path / "image.jpg")
