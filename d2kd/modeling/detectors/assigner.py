"""The assigner of GFL and ATSS, as an object that a config can name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from d2kd.regions.atss import assign, check_topk

__all__ = ["ATSSAssigner"]


class ATSSAssigner:
    """
    Adaptive training sample selection, see :func:`d2kd.regions.atss.assign`.

    Args:
        topk: candidates of each level and object, at least 2.

    Raises:
        ValueError: ``topk`` is not.
    """

    def __init__(self, topk: int = 9) -> None:
        self.topk = check_topk(topk, "ATSSAssigner's topk")

    def __call__(self, level_anchors: Sequence[Tensor], gt_boxes: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            level_anchors: per level, (R_l, 4) xyxy anchors, flat in (H, W, A) order.
            gt_boxes: (G, 4) xyxy objects of the image.
            valid: (R,) booleans over the levels' anchors in a row; None takes them all.

        Returns:
            (R,) int64: index of the object that each anchor answers for, -1 for none.
        """
        return assign(level_anchors, gt_boxes, topk=self.topk, valid=valid)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(topk={self.topk})"
