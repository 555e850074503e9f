"""What a run was asked for, against what its folder holds."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from d2kd.config.nodes import dataset_names
from d2kd.data.formats import FORMATS
from d2kd.experiments.files import read_json
from d2kd.experiments.jobs import JobError
from d2kd.experiments.plan import TEACHER, Run

__all__ = ["check_request", "request", "sha256"]

_HARMLESS = ("best_metric", "vis_period")


@cache
def _file_sha256(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256(path: str) -> str | None:
    """Digest of a file; None if there is no such file, or it is a URL."""
    file = Path(path)
    return _file_sha256(file, file.stat().st_mtime_ns) if file.is_file() else None


def _name_of(value: Any) -> str:
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # without its address, which the next process changes


def _annotations(cfg: DictConfig) -> dict[str, str | None]:
    """
    Dataset -> digest of its labels, for the datasets of the config that are registered with a COCO json or by
    ``d2kd.data.register_labelled``, whose ``json_file`` is what an evaluation has written.
    """
    found = {}
    for name in (name for split in ("train", "test") for name in dataset_names(cfg, split) if name in DatasetCatalog):
        metadata = MetadataCatalog.get(name)
        if labelled := metadata.get("labelled"):
            found[name] = _labels_sha256(Path(labelled["annotations"]), FORMATS[labelled["format"]])
        elif file := metadata.get("json_file"):
            found[name] = sha256(file)
    return found


def _labels_sha256(path: Path, suffix: str) -> str | None:
    """Digest of a label file, or of those in a folder, by name."""
    if not path.is_dir():
        return sha256(str(path))
    files = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
    lines = (f"{file.relative_to(path)} {sha256(str(file))}\n" for file in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def request(run: Run) -> dict[str, Any]:
    """
    What decides a run's outcome: its config (resolved) and overrides, the annotations of its data, its teacher's
    weights, the kind of device. Not ``train.best_metric``, by which no weights change but those of model_best.pth, and
    ``train.vis_period``, by which none do.
    """
    cfg = run.load_config()
    harmless = {f"train.{key}" for key in _HARMLESS}
    distils = OmegaConf.select(cfg, "model.losses", default=None)
    annotations = _annotations(cfg)
    for key in _HARMLESS:
        cfg.train.pop(key, None)
    content = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True, default=_name_of)
    return {
        "overrides": [override for override in run.overrides if override.split("=")[0].lstrip("+") not in harmless],
        "config_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "annotations_sha256": annotations,
        "teacher_sha256": sha256(cfg.model.teacher.checkpoint) if distils else None,
        "device": None if run.method == TEACHER else run.device,  # a teacher may come from anywhere
    }


def check_request(run: Run) -> dict[str, Any]:
    """
    The run's request.

    Raises:
        JobError: its folder holds a run, finished or not, of another request.
    """
    new, file = request(run), run.folder / "request.json"
    if not file.is_file():
        return new
    old = read_json(file)
    if new["teacher_sha256"] is None:  # not there (yet)
        old["teacher_sha256"] = None
    if old == new:
        return new
    if old["overrides"] != new["overrides"]:
        pairs = ((old["overrides"], new["overrides"]), (new["overrides"], old["overrides"]))
        was, now = (" ".join(key for key in some if key not in others) or "none" for some, others in pairs)
        why = f"its overrides were {was}, now {now}"
    elif old["config_sha256"] != new["config_sha256"]:
        why = f"what {run.config} says has changed since"
    elif old.get("annotations_sha256") != new["annotations_sha256"]:
        why = f"the annotations of {', '.join(new['annotations_sha256'])} have changed since"
    elif old.get("device") != new["device"]:
        why = f"it was trained on {old.get('device')}, now it would be on {new['device']}"
    else:
        why = "its teacher has other weights since"
    other = "" if run.method == TEACHER else ", or choose another --output"
    raise JobError(f"{run.folder} holds another run: {why}. Delete it{other}")
