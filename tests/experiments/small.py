"""An experiment on the digits' configs. Not a test."""

from d2kd.config import ALONE, CONFIG
from d2kd.experiments import Experiment

STUDENT = "digits/fcos_crosskd.py"


def experiment(output, **changes):
    base = {"configs": (STUDENT,), "output": output, "methods": (ALONE, CONFIG), "seeds": (0,)}
    return Experiment(**{**base, **changes})


def result(method, seed, ap, config="fcos", **changes):
    """A run's result as `d2kd compare` keeps it."""
    curve = [[100 * k, 10.0 * k, ap * k / 8] for k in range(1, 9)]
    metrics = {"AP": ap, "AP50": ap + 20, "AP75": ap + 5, "APs": ap - 5, "APm": None, "AP-seven": ap}
    metrics = {f"bbox/{key}": value for key, value in metrics.items()}
    return {
        **{"config": config, "method": method, "seed": seed, "max_iter": 800, "parameters": 180_000},
        **{"seconds_per_iteration": 0.1, "cost_seconds": 80.0, "device": "cpu", "curve": curve},
        **{
            "metric": "bbox/AP",
            "metrics": metrics,
            "values": metrics,
            "metrics_on": "fcos_val",
            "values_on": "fcos_val",
            "reported": {},
            "git": None,
            "versions": {"torch": "2"},
        },
        **changes,
    }
