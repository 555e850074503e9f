"""Methods x seeds of one config: what to train, jobs side by side, results, statistics, figures."""

from d2kd.experiments.curves import CurvePoint, last_quarter
from d2kd.experiments.evaluations import load_student, load_teacher
from d2kd.experiments.figures import draw_sheet, plot_curves
from d2kd.experiments.files import write_json, write_text
from d2kd.experiments.git import git_state
from d2kd.experiments.jobs import JobError, run_jobs, short_path
from d2kd.experiments.libraries import versions
from d2kd.experiments.metrics import COCO_METRICS
from d2kd.experiments.plan import TEACHER, Experiment, plan_run, quoted, stretched
from d2kd.experiments.report import cost_heading, markdown_table, write_report
from d2kd.experiments.results import collect
from d2kd.experiments.teachers import plan_teacher
from d2kd.experiments.training_jobs import build_jobs, environments

__all__ = [
    "COCO_METRICS",
    "TEACHER",
    "CurvePoint",
    "Experiment",
    "JobError",
    "build_jobs",
    "collect",
    "cost_heading",
    "draw_sheet",
    "environments",
    "git_state",
    "last_quarter",
    "load_student",
    "load_teacher",
    "markdown_table",
    "plan_run",
    "plan_teacher",
    "plot_curves",
    "quoted",
    "run_jobs",
    "short_path",
    "stretched",
    "versions",
    "write_json",
    "write_report",
    "write_text",
]
