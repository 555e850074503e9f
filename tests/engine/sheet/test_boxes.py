"""Boxes of detections: which are right, and where their labels stand."""

import numpy as np

from d2kd.engine.sheet import Box, draw_boxes, mark, place_label


def test_mark_gives_each_object_to_its_best_detection():
    truth = [Box((0, 0, 10, 10), "3"), Box((20, 20, 30, 30), "4")]
    found = [
        Box((0, 0, 10, 9), "3", 0.5),
        Box((0, 0, 10, 10), "3", 0.9),  # a second one on the same object is wrong
        Box((20, 20, 30, 30), "3", 0.8),  # another class
        Box((25, 25, 35, 35), "4", 0.7),  # beside it
    ]
    assert [(box.score, box.right) for box in mark(found, truth)] == [
        (0.9, True),
        (0.8, False),
        (0.7, False),
        (0.5, False),
    ]


def test_labels_stay_inside_and_apart():
    size, taken = (300, 280), []
    for box in [(0, 0, 80, 80), (5, 2, 85, 80), (220, 240, 299, 279), (100, 120, 160, 180), (104, 120, 160, 180)]:
        x0, y0, x1, y1 = place_label((60, 18), box, size, taken)
        assert 0 <= x0 and 0 <= y0 and x1 < size[0] and y1 < size[1]
        assert all(x0 >= t[2] or t[0] >= x1 or y0 >= t[3] or t[1] >= y1 for t in taken)
        taken.append((x0, y0, x1, y1))


def test_boxes_of_an_image_of_any_shape_are_where_they_are():
    image = np.full((40, 160, 3), 128, np.uint8)
    drawn = np.asarray(draw_boxes(image, [Box((40, 10, 80, 30), "a"), Box((90, 5, 90, 5), "empty")], (320, 80), 0))
    assert drawn.shape == (80, 320, 3)
    white = np.argwhere((drawn == 255).all(-1))
    assert white.min(0).tolist() == [21, 81] and white.max(0).tolist() == [59, 159]


def test_of_many_boxes_only_some_have_a_text():
    image = np.full((100, 100, 3), 128, np.uint8)
    boxes = [Box((x, 40, x + 8, 48), "name", right=True) for x in range(0, 90, 10)]
    few, many = (np.asarray(draw_boxes(image, boxes, (400, 400), texts)) for texts in (1, 9))
    blue = [(x == (0x56, 0xB4, 0xE9)).all(-1).sum() for x in (few, many)]
    assert blue[0] < blue[1]
