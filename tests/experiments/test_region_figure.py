"""The figure of LD's regions: that it is drawn, and from what."""

import numpy as np
import pytest
import torch
from PIL import Image

from d2kd.experiments.region_figure import draw_regions, ld_regions, main, square_anchors
from tests import assignment_scenes


def test_main_draws_the_scene_of_the_documentation_always_the_same(tmp_path):
    paths = [tmp_path / "pictures" / "regions.png", tmp_path / "again.png"]
    for path in paths:
        main(["--output", str(path)])
    with Image.open(paths[0]) as picture:
        assert 1000 <= picture.width <= 1400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    "boxes", [torch.zeros(0, 4), torch.rand(6, 2).repeat(1, 2) * 40 + torch.tensor([0, 0, 30, 30])]
)
def test_any_number_of_objects_over_an_image(tmp_path, boxes):
    path = tmp_path / "regions.png"
    image = np.full((64, 96, 3), (10, 200, 30), np.uint8)
    draw_regions(path, boxes, (64, 96), strides=(8, 16), image=image)
    with Image.open(path) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert (174, 237, 180) in colors  # the image, faintly


def test_anchors_and_regions():
    levels, sizes = zip(*(square_anchors((250, 320), s, 8 * s) for s in assignment_scenes.STRIDES), strict=True)
    assert sizes == assignment_scenes.ORACLE_HW
    expected = assignment_scenes.square_anchors(sizes)
    assert all(torch.equal(x, y) for x, y in zip(levels, expected, strict=True))
    _, boxes, _, counts = assignment_scenes.oracle_image(0)
    main_region, as_in_code, as_in_paper, inside = ld_regions(levels, boxes).values()
    assert [int(x.sum()) for x in main_region] == counts["pos_per_level"]
    assert [int((x > 0).sum()) for x in as_in_code] == counts["vlr_per_level"]
    for positive, *others in zip(main_region, as_in_paper, inside, strict=True):
        assert not any((positive * other).any() for other in others)
