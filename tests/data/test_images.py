"""The size of an image file."""

import pytest
from detectron2.data.detection_utils import read_image
from PIL import ExifTags, Image

from d2kd.data.images import image_size


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8, 9])
@pytest.mark.parametrize("name", ["image.jpg", "image.png"])
def test_the_size_is_that_of_the_mapper(tmp_path, name, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (8, 6)).save(tmp_path / name, exif=exif)
    height, width, _ = read_image(str(tmp_path / name), "BGR").shape
    assert image_size(tmp_path / name) == (width, height)


def test_a_png_is_not_decoded(tmp_path):
    """Which would take minutes for a dataset of them, at the beginning of each run."""
    Image.effect_noise((64, 64), 50).save(tmp_path / "image.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:2000])
    assert image_size(tmp_path / "image.png") == (64, 64)


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
    with pytest.raises(ValueError, match=r"image\.jpg is no image that Pillow reads\.$"):
        image_size(tmp_path / "image.jpg")
