"""Images without labels, out of any of Detectron2's datasets."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["without_labels"]

#: Where Detectron2's dataset format keeps labels: of boxes, masks and keypoints; of semantic and panoptic segmentation.
_LABELS = frozenset({"annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info"})


def without_labels(dataset: Sequence[dict]) -> list[dict]:
    """
    The dataset's images, marked ``"unlabeled": True`` and without labels; all else (file name, size, id) is kept.

    The mark is what tells an image without labels from one without objects: Detectron2 reads a COCO file that has no
    annotations as images with empty lists of them, and training on those would teach that everything is background.
    Detectron2's ``DatasetMapper`` makes no "instances" of such an image and passes the mark on.

    For :func:`d2kd.data.loader.build_train_loader` this need not be called: give it ``unlabeled``. In Detectron2's own
    loaders, ``labelled + without_labels(more)`` is a dataset whose batches hold as many of each as chance will have.
    Aspect-ratio grouping works; samplers that count classes (``RepeatFactorTrainingSampler``) do not.

    Args:
        dataset: Detectron2's dataset dicts, left as they are. Get them with ``filter_empty=False`` (yacs:
            ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``), since that filter leaves out images by their labels, and all of
            them where there are none.

    Returns:
        New dicts, in the same order.
    """
    return [{key: value for key, value in item.items() if key not in _LABELS} | {"unlabeled": True} for item in dataset]
