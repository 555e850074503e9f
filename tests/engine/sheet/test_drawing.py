"""The sheet: its sizes, and where colours stand."""

import numpy as np
import pytest
import torch

from d2kd.engine.sheet import Box, Cells, HeatMap, StepView, draw_sheet
from d2kd.engine.sheet.drawing import heat


def view_of(maps, shape, levels=(8, 16)):
    cells = [
        Cells(torch.rand(max(shape[0] // stride, 1), max(shape[1] // stride, 1)), (stride / 2, stride / 2), stride)
        for stride in levels
    ]
    names = [f"P{number}\nstride {stride}" for number, stride in enumerate(levels, 3)]
    heat_maps = [HeatMap(f"map {n}", "of a loss", cells, ["a note"] * len(levels)) for n in range(maps)]
    return StepView(names, heat_maps, ["A remark."])


def sheet(shape=(64, 64), maps=3, columns=("labels", "teacher"), levels=(8, 16)):
    image = np.full((*shape, 3), 90, np.uint8)
    boxes = [Box((8, 8, 24, 24), "a", 0.9, True)]
    return draw_sheet(image, dict.fromkeys(columns, boxes), view_of(maps, shape, levels), "title", "legend")


def test_a_pixel_has_the_colour_of_the_cell_whose_centre_is_nearest():
    values = torch.tensor([[0.0, 0.5, 1.0], [2.0, 0.04, 0.0]])
    cells = Cells(values, (0.0, 4.0), 8)
    colors, painted = heat(cells, 2.0, (16, 20), (40, 32))  # two pixels each
    assert colors.shape == (32, 40, 3) and painted.shape == (32, 40)
    shades = {}
    for y in range(32):
        for x in range(40):
            row, column = min(int((y + 0.5) / 2 / 8), 1), min(int(((x + 0.5) / 2 + 4) / 8), 2)
            value = values[row, column].item()
            assert painted[y, x] == (value >= 0.1)  # 5 % of 2
            assert shades.setdefault(value, tuple(colors[y, x])) == tuple(colors[y, x])
    darkness = [sum(map(int, shades[value])) for value in sorted(shades)]
    assert darkness == sorted(darkness, reverse=True) and len(set(darkness)) == len(darkness)
    assert not heat(Cells(torch.zeros(2, 2), (0.0, 0.0), 8), 0.0, (16, 16), (16, 16))[1].any()


def test_more_than_six_maps_begin_a_second_block_and_each_level_is_a_row():
    assert {sheet(maps=maps).width for maps in (2, 6, 7, 12)} == {1120}
    six, seven, twelve = (sheet(maps=maps).height for maps in (6, 7, 12))
    assert seven > six + 300 and twelve > six + 300
    assert sheet(levels=(8, 16, 32)).height > sheet().height + 150


@pytest.mark.parametrize("shape", [(320, 240), (60, 400), (400, 60), (8, 8)])
def test_images_of_any_shape(shape):
    drawn = np.asarray(sheet(shape, columns=("labels", "teacher", "student alone", "student, distilled")))
    assert drawn.shape[1] == 1120 and 400 < drawn.shape[0] < 2500
    assert (drawn[:, [0, -1]] == 255).all() and (drawn[[0, -1]] == 255).all()  # nothing is cut


def test_labels_of_the_levels_of_a_flat_image_stand_apart():
    two, three = (sheet((4, 1000), levels=levels).height for levels in ((8, 16), (8, 16, 32)))
    assert three - two >= 2 * 23  # its lines


def test_only_what_is_there_has_a_key():
    image, boxes = np.full((64, 64, 3), 90, np.uint8), [Box((8, 8, 24, 24), "a", 0.9)]
    plain = draw_sheet(image, {"no labels": [], "teacher": boxes}, view_of(2, (64, 64)), "title", "legend")
    orange = (np.asarray(plain) == (0xE6, 0x9F, 0x00)).all(-1)
    assert not orange.any()
