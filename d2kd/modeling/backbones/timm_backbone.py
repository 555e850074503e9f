"""Networks of the timm library as Detectron2 backbones; the only file that needs timm, and only when one is built."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from detectron2.modeling.backbone import Backbone
from torch import Tensor

__all__ = ["TimmBackbone"]


class TimmBackbone(Backbone):
    """
    A network of timm, as the ``bottom_up`` of Detectron2's ``FPN`` or the ``net`` of its ``SimpleFeaturePyramid``.

    Its outputs are named by their strides as those of Detectron2's ``ResNet``: "res2" has stride 4, "res5" stride 32.
    So it takes a ResNet's place in a config, and nothing but the node of ``bottom_up`` (and the channels of a
    ``LastLevelP6P7`` that starts from "res5") changes::

        model.backbone.bottom_up = L(TimmBackbone)(name="mobilenetv3_small_100", out_indices=[2, 3, 4])

    timm's weights want RGB images and ImageNet's statistics in that order: ``pixel_mean=[123.675, 116.28, 103.53]`` and
    ``pixel_std=[58.395, 57.12, 57.375]`` of the detector (some networks have others: 255 times ``mean`` and ``std`` of
    ``timm.get_pretrained_cfg(name)``), and ``image_format="RGB"`` of the data mapper. A detector that knows its
    channel order says ``input_format="RGB"``; for one that does not, such as Detectron2's FCOS, say it in
    ``model.input_format`` of the distilled model, and in ``model.teacher.input_format``. The other of student and
    teacher keeps its own.

    Batch norm is trained, with statistics of a rank's own images. Neither
    ``FrozenBatchNorm2d.convert_frozen_batchnorm`` nor torch's ``convert_sync_batchnorm`` may be applied to it: many of
    timm's norms hold the activation, which both would drop. ``timm.layers.freeze_batch_norm_2d`` and
    ``timm.layers.convert_sync_batchnorm`` keep it.

    Args:
        name: as ``timm.list_models()`` has it, with or without the tag of its weights.
        out_indices: which of the network's outputs, as in ``timm.create_model``; most convolutional networks have
            0 to 4 with strides 2 to 32, some (ConvNeXt, Swin) 0 to 3 with strides 4 to 32.
        pretrained: start from timm's weights, which it downloads. For evaluation, and for a teacher, whose checkpoint
            holds the backbone too, False does. Weights that lie in a file:
            ``pretrained=True, pretrained_cfg_overlay={"file": path}``.
        kwargs: further arguments of ``timm.create_model``, such as ``drop_path_rate``. Often needed:
            ``strict_img_size=False`` for a Swin, ``dynamic_img_size=True`` and ``dynamic_img_pad=True`` for a ViT,
            which else take images of one size; ``feature_cls="getter"`` for a MobileNet or EfficientNet whose last
            stage is not among ``out_indices``, which else keeps stages that nobody uses
            (``DistributedDataParallel`` complains of their parameters).

    Raises:
        ImportError: timm is not installed.
        ValueError: no such network, no such output, or outputs that cannot be named: two of one stride, or a stride
            that is no power of two.
    """

    def __init__(self, name: str, *, out_indices: Sequence[int], pretrained: bool = False, **kwargs: Any) -> None:
        super().__init__()
        timm = _import_timm()
        if ":" not in name and not timm.is_model(name):  # with a colon: a place to fetch the network from
            similar = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0)
            raise ValueError(
                f"TimmBackbone: timm {timm.__version__} has no network named {name!r}; similar names: "
                f"{', '.join(similar)} (all: timm.list_models())."
            )
        indices = list(out_indices)
        try:
            self.body = timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=indices, **kwargs
            )
        except (IndexError, AssertionError) as error:
            outputs = timm.create_model(name, features_only=True, **kwargs).feature_info
            if all(-len(outputs) <= index < len(outputs) for index in indices):
                raise
            raise ValueError(
                f"TimmBackbone: out_indices is {indices}, but {name} has the outputs {_describe(outputs)}."
            ) from error
        chosen = self.body.feature_info
        strides = chosen.reduction()
        if len(set(strides)) < len(strides) or any(stride & (stride - 1) for stride in strides):
            raise ValueError(
                f"TimmBackbone: the outputs {indices} of {name} have strides {strides}, expected a different power of "
                f"two for each; it has {_describe(chosen)}."
            )
        self._out_features = [f"res{stride.bit_length() - 1}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides))
        self._out_feature_channels = dict(zip(self._out_features, chosen.channels()))
        # Those of windowed transformers come channels last.
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # Backbone's has no argument
        """
        Args:
            x: (N, 3, H, W) normalised RGB images.

        Returns:
            (N, C, H / stride, W / stride) features by name, sizes rounded as the network does.
        """
        features = self.body(x)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return dict(zip(self._out_features, features, strict=True))


def _import_timm() -> ModuleType:
    try:
        import timm  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError("TimmBackbone needs timm, which is not installed: pip install timm.") from error
    return timm


def _describe(outputs: Any) -> str:
    """ "0 (stride 2, 16 channels), 1 (...)": all of a network's outputs, whichever were asked for."""
    dicts = [outputs[index] for index in range(len(outputs))]
    return ", ".join(f"{i} (stride {x['reduction']}, {x['num_chs']} channels)" for i, x in enumerate(dicts))
