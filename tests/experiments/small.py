"""An experiment on the digits' configs. Not a test."""

from d2kd.experiments import ALONE, ROOT, Experiment


def experiment(output, **changes):
    base = {"configs": ROOT / "configs/digits", "output": output, "detectors": ("fcos",), "seeds": (0,)}
    return Experiment(**{**base, "methods": (ALONE, "crosskd"), **changes})


def result(method, seed, ap, detector="fcos", **changes):
    """A run's result as compare.py keeps it."""
    curve = [[100 * k, 10.0 * k, ap * k / 8] for k in range(1, 9)]
    metrics = {"AP": ap, "AP50": ap + 20, "AP75": ap + 5, "APs": ap - 5, "APm": None, "APl": None}
    return {
        **{"detector": detector, "method": method, "seed": seed, "max_iter": 800, "parameters": 180_000},
        **{"seconds_per_iteration": 0.1, "cpu_seconds": 80.0, "curve": curve, "metrics": {"val": metrics}},
        **{"git": None, "versions": {"torch": "2"}, "split": "val"},
        **metrics,
        **changes,
    }
