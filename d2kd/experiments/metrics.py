"""How metrics of evaluators are called and written."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["COCO_METRICS", "decimals", "metric_name", "metric_text"]

#: Those of COCO's evaluator for boxes that a table shows; it returns AP by class as well.
COCO_METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/APm", "bbox/APl")


def metric_name(metric: str) -> str:
    """What tables and figures call a metric ``task/metric``: "AP" is COCO's of boxes."""
    return metric.removeprefix("bbox/") if metric in COCO_METRICS else metric


def decimals(metric: str, values: Iterable[float]) -> int:
    """How many decimals a column has: 1 for COCO's percentages and other large values, 3 for fractions of 1."""
    return 3 if metric not in COCO_METRICS and max(map(abs, values), default=0.0) <= 1 else 1


def metric_text(metric: str, value: float | None) -> str:
    """The metric and its value, for a line of progress."""
    text = "-" if value is None else f"{value:.{decimals(metric, [value])}f}"
    return f"{metric_name(metric)} {text}"
