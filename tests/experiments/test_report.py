import json
import math
from statistics import stdev

import numpy as np
import pytest
from PIL import Image

from d2kd.experiments import figures, report
from d2kd.experiments.figures import Box
from d2kd.experiments.report import ALONE, TEACHER, CurvePoint, stretched


def write_metrics(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def result(method, seed, ap, detector="fcos", **changes):
    """A run's result as compare.py keeps it."""
    curve = [[100 * k, 10.0 * k, ap * k / 8] for k in range(1, 9)]
    metrics = {"AP": ap, "AP50": ap + 20, "AP75": ap + 5, "APs": ap - 5, "APm": None, "APl": None}
    return {
        **{"detector": detector, "method": method, "seed": seed, "max_iter": 800, "parameters": 180_000},
        **{"seconds_per_iteration": 0.1, "cpu_seconds": 80.0, "curve": curve, "metrics": {"val": metrics}},
        **{"git": None, "versions": {"torch": "2"}, "split": "val"},
        **metrics,
        **changes,
    }


def test_metrics_are_by_finished_iterations_and_a_resume_replaces_what_it_repeats(tmp_path):
    file = tmp_path / "metrics.json"
    write_metrics(file, [{"iteration": 19, "x": 1}, {"iteration": 39, "x": 2}])
    with open(file, "a") as f:
        f.write('{"iteration": 59, "x"')  # killed here
        f.write('\n{"iteration": 39, "x": 3}\n{"iteration": 59, "x": 4}\n{"iteration": 60, "bbox/AP": NaN}\n')
    records = report.read_metrics(file, max_iter=60)
    assert list(records) == [20, 40, 60]
    assert records[40]["x"] == 3
    assert records[60]["x"] == 4 and math.isnan(records[60]["bbox/AP"])
    assert report.read_metrics(tmp_path / "none.json", 60) == {}


def test_curve_interpolates_the_cost_between_logs(tmp_path):
    file = tmp_path / "metrics.json"
    ends = [{"iteration": 19, "cost/cpu_seconds": 2.0}, {"iteration": 24, "bbox/AP": 5.0}]
    ends += [{"iteration": 39, "cost/cpu_seconds": 6.0}, {"iteration": 40, "bbox/AP": 9.0, "cost/cpu_seconds": 6.0}]
    write_metrics(file, ends)
    assert report.curve(report.read_metrics(file, 40)) == [CurvePoint(25, 3.0, 5.0), CurvePoint(40, 6.0, 9.0)]
    write_metrics(file, [{"iteration": 40, "bbox/AP": 9.0}])
    assert report.curve(report.read_metrics(file, 40)) == [CurvePoint(40, None, 9.0)]


@pytest.mark.parametrize(
    "points, added",
    [
        ([(500, 10.0), (750, 20.0), (1000, 26.0)], 6.0),  # evaluated at three quarters
        ([(700, 10.0), (800, 20.0), (1000, 26.0)], 11.0),  # or around them: 15.0 at 750
        ([(800, 20.0), (1000, 26.0)], None),
    ],
)
def test_last_quarter(points, added):
    assert report.last_quarter([CurvePoint(i, None, ap) for i, ap in points]) == added


def test_resample_aligns_schedules_of_different_lengths():
    short = [CurvePoint(100, 10.0, 1.0), CurvePoint(200, 20.0, 2.0)]
    long = [CurvePoint(101, 11.0, 4.0), CurvePoint(201, 21.0, 6.0), CurvePoint(300, 31.0, 8.0)]
    table = report.resample([short, long])
    assert table.shape == (2, 2, 3)
    np.testing.assert_allclose(table[0], [[100, 10, 1], [200, 20, 2]])
    np.testing.assert_allclose(table[1][1], [300, 31, 8])
    np.testing.assert_allclose(table[1][0, [0, 2]], [150, 4 + 2 * 49 / 100])


def test_gains_are_paired_by_seed():
    runs = [result(ALONE, seed, ap) for seed, ap in [(0, 30.0), (1, 34.0), (2, 32.0)]]
    # Seed 3 has no partner: it counts for the mean, not for the gain.
    runs += [result("crosskd", seed, ap) for seed, ap in [(0, 35.0), (1, 38.0), (2, 38.0), (3, 90.0)]]
    alone, crosskd = report.summarize(runs)
    assert alone.gain is None and alone.p_value is None
    assert alone.values["AP"] == (32.0, 2.0)
    assert crosskd.seeds == (0, 1, 2, 3) and crosskd.paired_seeds == 3
    assert crosskd.values["AP"][0] == pytest.approx(201 / 4)
    assert crosskd.gain == (pytest.approx(5.0), pytest.approx(stdev([5, 4, 6])))
    # t = 5 / (1 / sqrt 3) = 8.66 with two degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    t = 5 * math.sqrt(3)
    assert crosskd.p_value == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert crosskd.values["APm"] is None


def test_one_seed_has_no_deviation_and_no_p_value():
    row = report.summarize([result(ALONE, 0, 30.0), result("bckd", 0, 33.0)])[1]
    assert row.gain == (3.0, None) and row.p_value is None
    assert report.paired_p_value([2.0, 2.0]) is None


def test_detectors_do_not_mix():
    runs = [result(ALONE, 0, 30.0), result("bckd", 0, 33.0, detector="retinanet")]
    assert [(row.detector, row.gain) for row in report.summarize(runs)] == [("fcos", None), ("retinanet", None)]


def test_markdown_has_what_exists():
    runs = [result(TEACHER, 0, 60.0, cpu_seconds=None), result(ALONE, 0, 30.0), result(ALONE, 1, 31.0)]
    runs += [result(stretched("bckd"), 0, 32.0, max_iter=1200), result(stretched("bckd"), 1, 33.5, max_iter=1210)]
    lines = report.to_markdown(report.summarize(runs)).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    assert "APs" in table[0] and "APm" not in table[0] and "APl" not in table[0]
    assert [row["model"] for row in table] == ["teacher", "student alone", "student alone, at bckd's cost"]
    assert table[0]["AP"] == "60.0" and table[0]["training CPU s"] == "-" and table[0]["gain"] == "-"
    assert table[1]["AP"] == "30.5 ± 0.7" and table[1]["iterations"] == "800"
    assert table[2]["gain"] == "+2.2 ± 0.4" and table[2]["iterations"] == "1200-1210" and table[2]["seeds"] == "2"


def test_notes_say_how_finished_the_schedule_was_and_where_figures_come_from():
    state = {"commit": "0123456789abcdef", "dirty": True}
    runs = [result(ALONE, 0, 32.0, git=state), result("bckd", 0, 33.0, git={**state, "dirty": False})]
    notes = "\n".join(report.notes(runs))
    assert "added +8.0 AP (val) to the student alone" in notes
    assert "0123456789 with uncommitted changes" in notes and "torch 2" in notes
    assert "added" not in "\n".join(report.notes(runs[1:]))


def test_curves_of_any_matrix_are_drawn(tmp_path):
    runs = [result(method, seed, 30.0 + seed) for method in (ALONE, "bckd", stretched("bckd")) for seed in (0, 1)]
    runs += [result(TEACHER, 0, 60.0), result("crosskd", 0, 33.0, detector="retinanet")]
    figures.plot_curves(tmp_path / "two.png", runs)
    figures.plot_curves(tmp_path / "one.png", [run for run in runs if run["detector"] == "fcos"])
    two, one = (Image.open(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.width == one.width and two.height == 2 * one.height
    assert len(one.getcolors(one.width * one.height)) > 10


def test_mark_gives_each_object_to_its_best_detection():
    truth = [Box((0, 0, 10, 10), "3"), Box((20, 20, 30, 30), "4")]
    found = [
        Box((0, 0, 10, 9), "3", 0.5),
        Box((0, 0, 10, 10), "3", 0.9),  # a second one on the same object is wrong
        Box((20, 20, 30, 30), "3", 0.8),  # another class
        Box((25, 25, 35, 35), "4", 0.7),  # beside it
    ]
    assert [(box.score, box.right) for box in figures.mark(found, truth)] == [
        (0.9, True),
        (0.8, False),
        (0.7, False),
        (0.5, False),
    ]


def test_sheet_has_equal_panels(tmp_path):
    images = [np.full((96, 96, 3), value, np.uint8) for value in (50, 150)]
    boxes = [[Box((10, 10, 60, 60), "3", 0.8, True)], []]
    figures.draw_sheet(tmp_path / "sheet.png", images, {"truth": boxes, "student": boxes}, "caption", panel=200)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for value, rows in [(50, slice(40, 240)), (150, slice(248, 448))]:
        flat = (sheet == value).all(axis=-1)
        assert flat[rows, 8:208].any() and flat[rows, 216:416].any()
        outside = flat.copy()
        outside[rows, 8:208] = outside[rows, 216:416] = False
        assert outside.sum() < 200  # pixels of text alone
    np.testing.assert_array_equal(sheet[40:448, 8:208], sheet[40:448, 216:416])


def test_labels_stay_inside_and_apart():
    size, taken = 300, []
    for box in [(0, 0, 80, 80), (5, 2, 85, 80), (220, 260, 299, 299), (100, 120, 160, 180), (104, 120, 160, 180)]:
        x0, y0, x1, y1 = figures._place((60, 18), box, size, taken)
        assert 0 <= x0 and 0 <= y0 and x1 < size and y1 < size
        assert all(x0 >= t[2] or t[0] >= x1 or y0 >= t[3] or t[1] >= y1 for t in taken)
        taken.append((x0, y0, x1, y1))


def test_eight_methods_in_a_panel_are_told_apart():
    methods = [f"m{i}" for i in range(8)]
    styles = [figures._style(method, methods) for method in [report.ALONE, *methods]]
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == 9
