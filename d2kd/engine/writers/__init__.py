"""
Writers for trackers of runs, nodes of ``train.writers``: :mod:`d2kd.engine.writers.mlflow` and
:mod:`d2kd.engine.writers.wandb`, each of which needs an extra. What they have in common is here.
"""

from d2kd.engine.writers.run_writer import RunWriter

__all__ = ["RunWriter"]
