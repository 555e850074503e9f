"""MLflow (extra ``[mlflow]``)."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import numpy as np

from d2kd.engine.writers.run_writer import RunWriter

try:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
except ImportError as error:
    raise ImportError("d2kd.engine.writers.mlflow needs MLflow: pip install 'd2kd[mlflow]'.") from error

__all__ = ["MLflowWriter"]

logger = logging.getLogger(f"detectron2.{__name__}")

_LONGEST, _MOST = 500, 100  # what MLflow takes of a parameter, and at a time


class MLflowWriter(RunWriter):
    """
    Writes a run to MLflow: parameters, metrics, and as artifacts ``config.yaml``, ``preflight.txt`` and the pictures.

    Args:
        output_dir: ``train.output_dir``; its last part is the run's name.
        tracking_uri: of a server or a store; None: MLflow's own default (``MLFLOW_TRACKING_URI``).
        experiment: is made if there is none of that name.
        window_size: scalars are the median of as many iterations.

    Raises:
        MlflowException: the server does not answer, or the store cannot be used.
    """

    def __init__(
        self, output_dir: str, *, tracking_uri: str | None = None, experiment: str = "d2kd", window_size: int = 20
    ) -> None:
        self._client, self._experiment = MlflowClient(tracking_uri), experiment
        super().__init__("mlflow", output_dir, window_size)

    def begin(self, run_id: str | None) -> str:
        if run_id is not None:
            try:
                self._client.update_run(run_id, status="RUNNING")
                steps = [x.step for x in self._client.get_metric_history(run_id, "total_loss")]
                self.written, self._run = max(steps, default=-1), run_id
                return run_id
            except MlflowException as error:
                if error.get_http_status_code() >= 500:  # the server's trouble, not the run's
                    raise
                logger.warning("MLflow has no run %s to go on with, a new one begins: %s", run_id, error)
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        self._run = str(self._client.create_run(number, run_name=self._output.name).info.run_id)
        return self._run

    def log_config(self, values: dict[str, str], file: Path) -> None:
        params = [Param(_name(key), value[:_LONGEST]) for key, value in values.items()]
        for start in range(0, len(params), _MOST):
            self._client.log_batch(self._run, params=params[start : start + _MOST])
        self._client.log_artifact(self._run, str(file))

    def log_text(self, name: str, text: str) -> None:
        self._client.log_text(self._run, text, f"{name}.txt")

    def log_scalars(self, values: dict[str, float], iteration: int) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(_name(name), value, now, iteration) for name, value in values.items()]
        for start in range(0, len(metrics), _MOST):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MOST])

    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._client.log_image(self._run, image, f"{name}/{iteration:07d}.png")

    def finish(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def _name(name: str) -> str:
    """With the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
