"""Tables and notes of an experiment, and the files that they are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2kd.config import ALONE
from d2kd.experiments.curves import CurvePoint, last_quarter
from d2kd.experiments.figures import plot_curves
from d2kd.experiments.files import write_json, write_text
from d2kd.experiments.gain_figure import plot_gains
from d2kd.experiments.metrics import decimals, metric_name
from d2kd.experiments.plan import TEACHER, Experiment, method_label
from d2kd.experiments.results import collect
from d2kd.experiments.statistics import MeanStd, Row, final_value, mean_std, metric_columns, summarize

__all__ = ["cost_heading", "markdown_table", "notes", "to_markdown", "write_report"]


def notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    What a reader has to know beside the table, from the results' ``curve``, ``git`` and ``versions``: how much of the
    student's metric a longer schedule would still add, what the pairs are, and where the figures come from.
    """
    found = []
    metric = runs[0]["metric"]
    for config in dict.fromkeys(run["config"] for run in runs):
        alone = [run for run in runs if (run["config"], run["method"]) == (config, ALONE)]
        curves = [run["curve"] for run in alone]
        gains = [last_quarter([CurvePoint(*point) for point in points]) for points in curves]
        if added := [gain for gain in gains if gain is not None]:
            text = _cell(mean_std(added), decimals(metric, [points[-1][2] for points in curves]), "+")
            found.append(
                f"{config}: the last quarter of its schedule added {text} {metric_name(metric)} on "
                f"{alone[0]['metrics_on']} to the student alone."
            )
    if any(run["method"] not in (ALONE, TEACHER) for run in runs):
        found.append(
            f"gain: in {metric_name(metric)}, over the student alone of the same seed (same initial weights, same data "
            "in the same order); ± is the standard deviation over seeds, p that of a two-sided paired t-test."
        )
    students = [run for run in runs if run["method"] != TEACHER]
    if without := [f"{r['config']} {r['method']} seed {r['seed']}" for r in students if final_value(r) is None]:
        found.append(f"Without {metric_name(metric)}, and left out of its means and gains: {', '.join(without)}.")
    made = [run["git"] for run in runs if run.get("git")]
    if made:
        dirty = " with uncommitted changes" if any(state["dirty"] for state in made) else ""
        found.append(f"Configs at commit {', '.join(sorted({state['commit'][:10] for state in made}))}{dirty}.")
    libraries = {", ".join(f"{k} {v}" for k, v in run["versions"].items()) for run in runs}
    found.append(f"{'; '.join(sorted(libraries))}.")
    return found


def _cell(pair: MeanStd | None, digits: int, sign: str = "") -> str:
    if pair is None:
        return "-"
    mean, std = pair
    return f"{mean:{sign}.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _gain_cell(row: Row, digits: int) -> str:
    text = _cell(row.gain, digits, "+")
    if row.gain is None or row.paired_seeds == len(row.seeds):
        return text
    return f"{text} ({row.paired_seeds} pair{'' if row.paired_seeds == 1 else 's'})"


def _p_cell(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs as a table, a row for each config and method."""
    rows = summarize(runs)
    metric, *others = metric_columns(runs)
    means = {key: [value[0] for row in rows if (value := row.values[key])] for key in (metric, *others)}
    places = {key: decimals(key, values) for key, values in means.items()}
    header = ["config", "model", "seeds", "iterations", metric_name(metric), "gain", "p (paired)"]
    header += [*map(metric_name, others), "parameters", "s/it", cost_heading(runs[0]["device"])]
    lines = []
    for row in rows:
        least, most = row.iterations or (None, None)
        lines.append(
            [
                row.config,
                method_label(row.method),
                str(len(row.seeds) or "-"),
                "-" if least is None else str(least) if least == most else f"{least}-{most}",
                _cell(row.values[metric], places[metric]),
                _gain_cell(row, places[metric]),
                _p_cell(row.p_value),
                *(_cell(row.values[key], places[key]) for key in others),
                f"{row.parameters / 1e6:.2f} M",
                _cell(row.values["seconds_per_iteration"], 3),
                _cell(row.values["cost_seconds"], 0),
            ]
        )
    return markdown_table(header, lines)


def cost_heading(device: str) -> str:
    """Which seconds a table's costs are."""
    return {"cpu": "training CPU s", "cuda": "training s on a GPU"}[device]


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns are aligned in a terminal as well: words left, numbers right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    words = [all(line[i][:1].isalpha() for line in lines) for i in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, words)]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if left else "-" * (w - 1) + ":" for w, left in zip(widths, words)]
    return "\n".join([render(header), render(rule), *map(render, lines)]) + "\n"


def write_report(experiment: Experiment, command: str) -> tuple[str, list[str]]:
    """
    Write ``results.md``, ``results.json``, ``curves.png`` and, if there are pairs, ``gains.png`` to the output folder.

    Args:
        experiment: finished runs of its overrides are reported, whichever configs, methods and seeds it names.
        command: what people type for it.

    Returns:
        (the content of ``results.md``, or that there is none; names of the files that were written)
    """
    results, left_out = collect(experiment)
    if not results:
        return "No run is finished, so there is nothing to report.", []
    where = ", ".join(dict.fromkeys(run["values_on"] for run in results))
    said = [f"Metrics on {where}, of the weights after the last iteration.", *notes(results)]
    if left_out:
        said.append(f"{left_out} finished runs with other overrides or configs lie here too and are left out.")
    table = to_markdown(results)
    text = f"{table}\n" + "\n".join(f"- {note}" for note in said) + f"\n\nMade by `{command}`.\n"
    write_text(experiment.output / "results.md", text)
    write_json(experiment.output / "results.json", {"command": command, "runs": results})
    plot_curves(experiment.output / "curves.png", results)
    written, gains = ["results.md", "results.json", "curves.png"], experiment.output / "gains.png"
    if plot_gains(gains, results):
        written.append(gains.name)
    else:
        gains.unlink(missing_ok=True)  # an earlier one, of pairs that are no longer there
    return text, written
