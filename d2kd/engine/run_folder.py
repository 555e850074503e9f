"""What a run may find in its output folder, and what it must leave there."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from d2kd.checkpoint import checkpoint_names
from d2kd.engine.defaults import ConfigError
from d2kd.engine.metrics_file import cut_metrics

__all__ = ["check_run_folder", "run_files", "tidy_run_folder"]

#: Beside the numbered checkpoints.
_FILES = (
    "last_checkpoint",
    "metrics.json",
    "model_best.pth",
    "model_best.json",
    "model_final_ema.pth",
    "mlflow_run.txt",  # the run's ids in trackers
    "wandb_run.txt",
)


def check_run_folder(cfg: DictConfig, *, resume: bool, overwrite: bool) -> None:
    """
    Check that a run destroys neither another run nor its teacher.

    Args:
        cfg: ``train.output_dir`` and, of a distilled run, ``model.teacher.checkpoint`` are read.
        resume: the run goes on with what is there.
        overwrite: what is there may go.

    Raises:
        ConfigError: the folder holds another run's checkpoints or metrics, and neither ``resume`` nor ``overwrite`` is
            set; or it holds the teacher's checkpoint.
    """
    folder = Path(cfg.train.output_dir)
    teacher = OmegaConf.select(cfg, "model.teacher.checkpoint", default=None)
    if teacher and "://" not in str(teacher):
        path = Path(str(teacher).split("?")[0])
        if path.parent.resolve() == folder.resolve() or path.resolve().parent == folder.resolve():
            raise ConfigError(
                f"train.output_dir={folder} holds the teacher's checkpoint ({path.name}), which this run would write "
                "over: choose another folder."
            )
    found = run_files(folder)
    if found and not (resume or overwrite):
        raise ConfigError(
            f"train.output_dir={folder} has another run's files ({', '.join(path.name for path in found[:3])}"
            f"{', ...' if len(found) > 3 else ''}): --resume goes on with it, --overwrite deletes them, or choose "
            "another folder."
        )


def tidy_run_folder(folder: Path, start_iter: int, *, overwrite: bool, evaluated_again: bool) -> None:
    """
    Delete what a run will not go on with, and what killed ones had written of a checkpoint; no run may write there now.

    Args:
        folder: ``train.output_dir``.
        start_iter, evaluated_again: see :func:`d2kd.engine.metrics_file.cut_metrics`.
        overwrite: nothing of another run is continued: its checkpoints and metrics go.
    """
    for path in [*folder.glob(".model_*.partial"), *(run_files(folder) if overwrite else [])]:
        path.unlink()
    cut_metrics(folder / "metrics.json", start_iter, evaluated_again=evaluated_again)


def run_files(folder: Path) -> list[Path]:
    """The checkpoints and metrics of a run in ``folder``; those that are not empty."""
    if not folder.is_dir():
        return []
    paths = [folder / name for name in (*_FILES, *checkpoint_names(folder))]
    return [path for path in paths if path.is_file() and path.stat().st_size > 0]
