"""Images without labels, from any of Detectron2's datasets."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["without_labels"]

#: Where Detectron2's dataset format keeps labels: of boxes, masks and keypoints; of semantic and panoptic segmentation.
_LABELS = frozenset({"annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info"})


def without_labels(dataset: Sequence[dict]) -> list[dict]:
    """
    The dataset's images without labels and marked ``"unlabeled": True``; all else (file name, size, id) is kept.

    The mark distinguishes an image without labels from one without objects: Detectron2 reads a COCO file without
    annotations as images with empty lists of them, and training on those would teach that everything is background.
    Detectron2's ``DatasetMapper`` makes no "instances" of such an image and passes the mark on.

    :func:`d2kd.data.build_train_loader` calls this itself: give it ``unlabeled``. For Detectron2's own loaders, use the
    dataset ``labelled + without_labels(more)``; how many of each a batch has is then random. Aspect-ratio grouping
    works, samplers that count classes (``RepeatFactorTrainingSampler``) do not.

    Args:
        dataset: Detectron2's dataset dicts; not changed. Get them with ``filter_empty=False`` (yacs:
            ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``): that filter drops every image without annotations.

    Returns:
        New dicts, in the same order.
    """
    return [{key: value for key, value in item.items() if key not in _LABELS} | {"unlabeled": True} for item in dataset]
