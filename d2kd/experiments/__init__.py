"""Methods x seeds of one config: what to train, jobs side by side, results, statistics, figures."""

from d2kd.experiments.clone import ROOT, enter_clone, git_state
from d2kd.experiments.curves import CurvePoint, last_quarter
from d2kd.experiments.figures import Box, draw_sheet, mark, plot_curves
from d2kd.experiments.files import write_json, write_text
from d2kd.experiments.jobs import JobError, run_jobs, short_path
from d2kd.experiments.plan import ALONE, TEACHER, Experiment, plan_run, plan_teacher, stretched
from d2kd.experiments.report import markdown_table, write_report
from d2kd.experiments.results import collect, load_detector
from d2kd.experiments.statistics import METRICS
from d2kd.experiments.training_jobs import build_jobs

__all__ = [
    "ALONE",
    "METRICS",
    "ROOT",
    "TEACHER",
    "Box",
    "CurvePoint",
    "Experiment",
    "JobError",
    "build_jobs",
    "collect",
    "draw_sheet",
    "enter_clone",
    "git_state",
    "last_quarter",
    "load_detector",
    "mark",
    "markdown_table",
    "plan_run",
    "plan_teacher",
    "plot_curves",
    "run_jobs",
    "short_path",
    "stretched",
    "write_json",
    "write_report",
    "write_text",
]
