"""What a run was asked for, against what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2kd.experiments.datasets import annotations_sha256
from d2kd.experiments.digests import config_sha256, files_sha256, sha256
from d2kd.experiments.files import read_json
from d2kd.experiments.jobs import JobError
from d2kd.experiments.plan import TEACHER, Run

__all__ = ["check_request", "request", "request_file"]

_HARMLESS = ("best_metric", "vis_period")


def request_file(run: Run) -> Path:
    """Where a run's request is kept, with the commit that it was begun at."""
    return run.folder / "request.json"


def request(run: Run) -> dict[str, Any]:
    """
    What decides a run's outcome: its config (resolved) and overrides, the annotations of its data, the files that its
    model reads and starts from, its teacher's weights, the kind of device. Not ``train.best_metric``, by which no
    weights change but those of model_best.pth, and ``train.vis_period``, by which none do.
    """
    cfg = run.load_config()
    harmless = {f"train.{key}" for key in _HARMLESS}
    distils = OmegaConf.select(cfg, "model.losses", default=None)
    for key in _HARMLESS:
        cfg.train.pop(key, None)
    return {
        "overrides": [override for override in run.overrides if override.split("=")[0].lstrip("+") not in harmless],
        "config_sha256": config_sha256(cfg),
        "annotations_sha256": annotations_sha256(cfg, "train", "test"),
        "files_sha256": files_sha256(cfg),
        "teacher_sha256": sha256(cfg.model.teacher.checkpoint) if distils else None,
        "device": None if run.method == TEACHER else run.device,  # a teacher may come from anywhere
    }


def check_request(run: Run) -> dict[str, Any]:
    """
    The run's request. Files that are not there, now or when the folder's run was begun, are not compared.

    Raises:
        JobError: its folder holds a run, finished or not, of another request.
    """
    new, file = request(run), request_file(run)
    if not file.is_file():
        return new
    old = read_json(file)
    relabelled = _changed(old.get("annotations_sha256", {}), new["annotations_sha256"])
    rewritten = _changed(old.get("files_sha256", {}), new["files_sha256"], both=True)
    if set(old["overrides"]) != set(new["overrides"]):  # where their order matters, the config differs
        pairs = ((old["overrides"], new["overrides"]), (new["overrides"], old["overrides"]))
        was, now = (" ".join(key for key in some if key not in others) or "none" for some, others in pairs)
        why = f"its overrides were {was}, now {now}"
    elif old["config_sha256"] != new["config_sha256"]:
        why = f"what {run.config} says has changed since"
    elif relabelled:
        why = f"the annotations of {', '.join(relabelled)} have changed since"
    elif rewritten:
        why = f"the file of {' and of '.join(rewritten)} has changed since"
    elif old.get("device") != new["device"]:
        why = f"it was trained on {old.get('device')}, now it would be on {new['device']}"
    elif new["teacher_sha256"] not in (None, old["teacher_sha256"]):  # None: not there (yet)
        why = "its teacher has other weights since"
    else:
        return new
    other = "" if run.method == TEACHER else ", or choose another --output"
    raise JobError(f"{run.folder} holds another run: {why}. Delete it{other}")


def _changed(old: Mapping[str, str | None], new: Mapping[str, str | None], *, both: bool = False) -> list[str]:
    """What has another digest now; with ``both``, of what has one in both."""
    names = [name for name in old if name in new] if both else [*dict.fromkeys([*old, *new])]
    return [name for name in names if old.get(name) != new.get(name)]
