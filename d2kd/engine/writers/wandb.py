"""Weights & Biases (extra ``[wandb]``)."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from d2kd.engine.writers.run_writer import RunWriter

try:
    import wandb
except ImportError as error:
    raise ImportError("d2kd.engine.writers.wandb needs Weights & Biases: pip install 'd2kd[wandb]'.") from error

__all__ = ["WandbWriter"]

logger = logging.getLogger(f"detectron2.{__name__}")

_LONGEST = 300  # seconds that the end of a run waits for W&B; what it has not got then is on the disk


class WandbWriter(RunWriter):
    """
    Writes a run to Weights & Biases: the config's values and its file, scalars over ``iteration``, the preflight in the
    run's summary, and the pictures.

    Args:
        output_dir: ``train.output_dir``, which gets W&B's own files, too; its last part is the run's name.
        project: of W&B.
        mode: "online", "offline" (``wandb sync`` sends it later) or "disabled"; None: W&B's own default
            (``WANDB_MODE``).
        window_size: scalars are the median of as many iterations.

    Raises:
        wandb.Error: nobody is logged in, or the server does not answer.
    """

    def __init__(
        self,
        output_dir: str,
        *,
        project: str = "d2kd",
        mode: Literal["online", "offline", "disabled"] | None = None,
        window_size: int = 20,
    ) -> None:
        self._project, self._mode = project, mode
        super().__init__("wandb", output_dir, window_size)

    def begin(self, run_id: str | None) -> str:
        self._run = wandb.init(
            project=self._project,
            name=self._output.name,
            dir=str(self._output),
            id=run_id,
            resume="allow",
            mode=self._mode,
            # The console is the run's own.
            settings=wandb.Settings(console="off", silent=True, finish_timeout=_LONGEST),
        )
        # Not W&B's own step, which a run that goes on from a checkpoint cannot repeat.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        self.written = int(self._run.summary.get("iteration", -1))
        logger.info("Weights & Biases: %s", self._run.dir if self._run.offline else self._run.url)
        return str(self._run.id)

    def log_config(self, values: dict[str, str], file: Path) -> None:
        self._run.config.update(values)
        if self._run.disabled:  # it has no folder
            return
        # A copy by another name: W&B writes a config.yaml of its own, through a link to this one.
        copy = shutil.copyfile(file, Path(self._run.dir, "training_config.yaml"))
        self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def log_text(self, name: str, text: str) -> None:
        self._run.summary[name] = text

    def log_scalars(self, values: dict[str, float], iteration: int) -> None:
        self._run.log({"iteration": iteration, **values})

    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._run.log({"iteration": iteration, name: wandb.Image(image)})

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
