"""Networks of the timm library as Detectron2 backbones; timm is imported when one is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from d2kd.checkpoint import first_of, read_weights

__all__ = ["TimmBackbone", "import_timm"]


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
            holds the backbone too, False does.
        weights: start from these instead, and download nothing: the path of a file, or name -> tensor, of the whole
            network as timm names its weights (a node such as :func:`efficientnet_lite_weights`). Every weight of the
            backbone has to be there; those of the classifier and of stages that are not used are left out.
        freeze_at: the weights up to the output "res<freeze_at>" stay as they are, and its batch norms use their running
            statistics, as in Detectron2's ``ResNet``. 0: everything is trained.
        channels_last: compute in this memory format, faster for networks of depthwise convolutions. The features are
            in the ordinary one.
        kwargs: further arguments of ``timm.create_model``, such as ``drop_path_rate``. Often needed:
            ``strict_img_size=False`` for a Swin, ``dynamic_img_size=True`` and ``dynamic_img_pad=True`` for a ViT,
            which else take images of one size; ``feature_cls="getter"`` for a MobileNet or EfficientNet whose last
            stage is not among ``out_indices``, which else keeps stages that nobody uses
            (``DistributedDataParallel`` complains of their parameters).

    Raises:
        ImportError: timm is not installed.
        OSError: the weights cannot be downloaded.
        ValueError: no such network, no such output, or outputs that cannot be named: two of one stride, or a stride
            that is no power of two; no output to freeze at; weights that are missing, of other shapes, or of another
            network.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int],
        pretrained: bool = False,
        weights: str | Mapping[str, Tensor] | None = None,
        freeze_at: int = 0,
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        timm = import_timm()
        if ":" not in name and not timm.is_model(name):  # with a colon: a place to fetch the network from
            similar = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0)
            raise ValueError(
                f"TimmBackbone: timm {timm.__version__} has no network named {name!r}; similar names: "
                f"{', '.join(similar)} (all: timm.list_models())."
            )
        indices = list(out_indices)
        try:
            self.body = timm.create_model(
                name, pretrained=pretrained and weights is None, features_only=True, out_indices=indices, **kwargs
            )
        except OSError as error:  # of the client that downloads, in several lines
            raise OSError(
                f"TimmBackbone: the weights of {name} cannot be downloaded ({type(error).__name__}): give weights=FILE "
                "that holds them, or pretrained=False for random ones."
            ) from error
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
        # Features come from the finest to the coarsest, whatever the order of the indices.
        pairs = sorted(zip(strides, chosen.channels()))
        outputs = {f"res{stride.bit_length() - 1}": (stride, channels) for stride, channels in pairs}
        self._out_features = list(outputs)
        self._out_feature_strides = {name: stride for name, (stride, _) in outputs.items()}
        self._out_feature_channels = {name: channels for name, (_, channels) in outputs.items()}
        if weights is not None:
            with torch.random.fork_rng(devices=[]):
                # Not only the features: some networks have layers behind their last output.
                whole = timm.create_model(name, **{key: x for key, x in kwargs.items() if key != "feature_cls"})
            _load(self.body, weights, whole, name)
        if freeze_at:
            _freeze(self.body, freeze_at, name)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.body.to(memory_format=self._memory_format)
        # Those of windowed transformers come channels last.
        self._permutes = getattr(self.body, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # Backbone's has no argument
        """
        Args:
            x: (N, 3, H, W) normalised RGB images.

        Returns:
            (N, C, H / stride, W / stride) features by name, sizes rounded as the network does.
        """
        features = self.body(x.contiguous(memory_format=self._memory_format))
        if self._permutes:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        elif self._memory_format is torch.channels_last:
            features = [feature.contiguous() for feature in features]
        return dict(zip(self._out_features, features, strict=True))


def import_timm() -> ModuleType:
    """
    Raises:
        ImportError: timm is not installed.
    """
    try:
        import timm  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError("TimmBackbone needs timm, which is not installed: pip install timm.") from error
    return timm


def _load(body: nn.Module, weights: str | Mapping[str, Any], whole: nn.Module, network: str) -> None:
    """
    Load all of the body's weights, whose names differ from the whole network's as timm takes it apart. A deeper network
    of the family has all of them and more, so the others must be of layers of ``whole``, or of another classifier.
    """
    source = weights if isinstance(weights, str) else "the weights"
    content = read_weights(weights) if isinstance(weights, str) else weights
    content = content.get("state_dict", content)
    given = {_plain_name(name): value for name, value in content.items()}
    wanted = {name: _plain_name(name) for name in body.state_dict()}
    misfits = [
        name
        for name, value in body.state_dict().items()
        if not name.endswith("num_batches_tracked")
        and (wanted[name] not in given or given[wanted[name]].shape != value.shape)
    ]
    if misfits:
        raise ValueError(
            f"TimmBackbone: {len(misfits)} weights of {network} are not in {source}, or have other shapes there: "
            f"{first_of(misfits)}. Expected timm's weights of the same network."
        )
    known = {_plain_name(name) for name in (*whole.state_dict(), *dict(whole.named_buffers()))}
    parts = tuple({f"{name.removeprefix('model.').partition('.')[0]}_" for name in wanted})
    foreign = [name for name in content if _plain_name(name).startswith(parts) and _plain_name(name) not in known]
    if foreign:
        raise ValueError(
            f"TimmBackbone: {len(foreign)} weights in {source} are of no layer of {network}: {first_of(foreign)}. "
            "Expected timm's weights of the same network."
        )
    body.load_state_dict({name: given[key] for name, key in wanted.items() if key in given}, strict=False)


def _plain_name(name: str) -> str:
    """A name of the body's or of the network's: FeatureGetterNet adds "model.", FeatureListNet has "_" for dots."""
    return name.removeprefix("model.").replace(".", "_")


def _freeze(body: nn.Module, freeze_at: int, network: str) -> None:
    """Freeze the parameters, and the statistics of batch norms, up to the body's last output of stride 2**freeze_at."""
    timm = import_timm()
    info: Any = body.feature_info
    modules = [name for name, _ in body.named_modules()]
    ends: dict[int, int] = {}  # of each output that the body has, where its last module stands
    for index in range(len(info)):
        start = f"{_plain_name(info[index]['module'])}_"
        inside = [place for place, name in enumerate(modules) if f"{_plain_name(name)}_".startswith(start)]
        if inside:
            ends[index] = inside[-1]
    of_stride = [end for index, end in ends.items() if info[index]["reduction"] == 2**freeze_at]
    if not of_stride:
        raise ValueError(
            f"TimmBackbone: freeze_at is {freeze_at}, but {network} has no output of stride {2**freeze_at} to freeze "
            f"up to; it has {_describe(info, ends) or 'none'}."
        )
    for name in modules[: of_stride[-1] + 1]:
        module = body.get_submodule(name)
        # Not those of its children: it may hold later stages, too.
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            body.set_submodule(name, timm.layers.freeze_batch_norm_2d(module))


def _describe(outputs: Any, indices: Iterable[int] | None = None) -> str:
    """ "0 (stride 2, 16 channels), 1 (...)": a network's outputs, by default all, whichever were asked for."""
    dicts = {index: outputs[index] for index in (range(len(outputs)) if indices is None else indices)}
    return ", ".join(f"{i} (stride {x['reduction']}, {x['num_chs']} channels)" for i, x in dicts.items())
