"""Curves, and sheets of images with boxes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from d2kd.config import ALONE
from d2kd.engine.sheet import Box
from d2kd.experiments import TEACHER, draw_sheet, plot_curves, stretched
from d2kd.experiments.ceiling_figure import plot_ceiling
from d2kd.experiments.figures import line_style
from d2kd.experiments.gain_figure import plot_gains
from d2kd.experiments.run_figure import plot_runs
from tests.experiments.small import result


def test_curves_of_any_experiment_are_drawn(tmp_path):
    runs = [result(method, seed, 30.0 + seed) for method in (ALONE, "bckd", stretched("bckd")) for seed in (0, 1)]
    runs += [result(TEACHER, 0, 60.0), result("crosskd", 0, 33.0, config="retinanet")]
    plot_curves(tmp_path / "two.png", runs)
    plot_curves(tmp_path / "one.png", [run for run in runs if run["config"] == "fcos"])
    two, one = (Image.open(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.width == one.width and two.height == 2 * one.height
    assert len(one.getcolors(one.width * one.height)) > 10


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    """Matplotlib takes what is between two dollar signs for a formula, and fails where it is none."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: found.extend(figure.findobj(Text)))
    name, path = r"a$\q$", tmp_path / "figure.png"
    runs = [result(method, 0, 30.0, config=name) for method in (ALONE, "bckd")]
    for draw in (plot_curves, plot_gains, plot_ceiling):
        draw(path, runs)
    plot_runs(path, {name: {20: {"lr": 0.1}}})
    assert sum(name in text.get_text() for text in found) == 4
    assert not any(text.get_parse_math() for text in found)


def test_legends_say_what_each_mark_is(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *_, **__: found.append({t.get_text() for x in figure.legends for t in x.texts}),
    )
    runs = [result(method, seed, 30.0 + seed) for seed in (0, 1) for method in (ALONE, "bckd", "ld")]
    for draw in (plot_curves, plot_gains):
        draw(tmp_path / "two.png", runs)
        draw(tmp_path / "one.png", runs[:3])
    band = "band: standard deviation over seeds"
    assert [band in texts for texts in found] == [True, False, False, False]
    assert all({"student alone", "bckd", "ld"} <= texts for texts in found)


def test_many_runs_have_styles_of_their_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda *_, **style: drawn.append((style["color"], style["linestyle"])))
    plot_runs(tmp_path / "runs.png", {str(index): {20: {"lr": 0.1}} for index in range(24)})
    assert len(set(drawn)) == len(drawn) == 24


def test_a_teacher_without_the_metric_has_no_line(tmp_path):
    runs = [result(ALONE, 0, 30.0), result(TEACHER, 0, 60.0, metrics={"bbox/AP50": 80.0})]
    plot_curves(tmp_path / "without.png", runs)
    plot_curves(tmp_path / "alone.png", runs[:1])
    assert (tmp_path / "without.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_sheet_has_equal_panels(tmp_path):
    images = [np.full((96, 96, 3), value, np.uint8) for value in (50, 150)]
    boxes = [[Box((10, 10, 60, 60), "3", 0.8, True)], []]
    draw_sheet(tmp_path / "sheet.png", images, {"truth": boxes, "student": boxes}, "caption", panel=200)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]  # no half-written file beside it
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for value, rows in [(50, slice(40, 240)), (150, slice(248, 448))]:
        flat = (sheet == value).all(axis=-1)
        assert flat[rows, 8:208].any() and flat[rows, 216:416].any()
        outside = flat.copy()
        outside[rows, 8:208] = outside[rows, 216:416] = False
        assert outside.sum() < 200  # pixels of text alone
    np.testing.assert_array_equal(sheet[40:448, 8:208], sheet[40:448, 216:416])


def test_eight_methods_in_a_panel_are_told_apart():
    methods = [f"m{i}" for i in range(8)]
    styles = [line_style(method, methods) for method in [ALONE, *methods]]
    assert len({style["color"] for style in styles}) == len({style["marker"] for style in styles}) == 9


def test_a_method_has_one_style_in_all_figures():
    for figure in (["crosskd"], ["tid", "mine", "crosskd"], ["crosskd_pkd", "crosskd", "bckd"]):
        assert line_style("crosskd", figure) == line_style("crosskd", ["crosskd", "ld"])
        assert len({line_style(method, figure)["color"] for method in figure}) == len(figure)
