"""Batch norms of a frozen network, merged into the convolutions before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TypeGuard

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["fold_norms", "is_batch_norm", "rectify_in_place"]

_Norm = nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d
#: What frozen batch norms of Detectron2, torchvision and timm, three classes without a common base, have as buffers.
_FROZEN = {"weight", "bias", "running_mean", "running_var"}


def fold_norms(detector: DenseDetector, forward: Callable[[], object]) -> None:
    """
    Merge batch norms in eval mode into the convolutions before them. Parameters are replaced, not changed.

    Args:
        forward: runs all of the detector's layers, which shows the order of convolutions and norms.
    """
    for conv in detector.modules():
        if isinstance(conv, Conv2d) and _is_plain(conv) and _is_foldable(conv.norm):
            _merge(conv, conv.norm)
            conv.norm = None
    if not any(_is_foldable(module) for module in detector.modules()):
        return
    names: dict[nn.Module, list[str]] = {}
    for name, module in detector.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for conv, norm in _neighbours(detector, forward):
        _merge(conv, norm)
        activation = getattr(norm, "act", None)  # timm's norms may hold one
        for name in names[norm]:
            detector.set_submodule(name, activation if isinstance(activation, nn.Module) else nn.Identity())


def rectify_in_place(detector: DenseDetector) -> None:
    """Let the ReLUs of towers overwrite what the convolution or norm before them made for them alone."""
    for module in detector.modules():
        if isinstance(module, nn.Sequential):
            for before, relu in pairwise(module):
                if isinstance(relu, nn.ReLU) and isinstance(before, (nn.Conv2d, nn.GroupNorm, nn.Identity)):
                    relu.inplace = True


def is_batch_norm(module: object) -> TypeGuard[_Norm]:
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return True
    return isinstance(module, nn.Module) and dict(module.named_buffers(recurse=False)).keys() >= _FROZEN


def _is_foldable(module: object) -> TypeGuard[_Norm]:
    return is_batch_norm(module) and module.running_var is not None


def _is_plain(conv: nn.Module) -> bool:
    """Whether it is a convolution with its weight as it stands there, and no more."""
    return type(conv).forward in (nn.Conv2d.forward, Conv2d.forward) and not is_parametrized(conv)


def _merge(conv: nn.Conv2d, norm: _Norm) -> None:
    # Of frozen norms all are buffers; without affine parameters there are no weight and bias.
    tensors = dict(norm.named_parameters(recurse=False)) | dict(norm.named_buffers(recurse=False))
    mean, variance = tensors["running_mean"], tensors["running_var"]
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, tensors.get("weight"), tensors.get("bias")
    )


@torch.no_grad()
def _neighbours(detector: DenseDetector, forward: Callable[[], object]) -> list[tuple[nn.Conv2d, _Norm]]:
    """Each convolution whose output is always the input of one norm, which has no other, with that norm."""
    made: dict[tuple[int, int], nn.Conv2d] = {}  # by id and version: a ReLU in place returns the same tensor, changed
    outputs: list[Tensor] = []  # kept, so that no two have one id
    calls: Counter[nn.Module] = Counter()
    pairs: Counter[tuple[nn.Conv2d, _Norm]] = Counter()

    def after_conv(conv: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        calls[conv] += 1
        made[id(output), output._version] = conv
        outputs.append(output)

    def before_norm(norm: _Norm, args: tuple[Tensor]) -> None:
        calls[norm] += 1
        conv = made.get((id(args[0]), args[0]._version))
        if conv is not None:
            pairs[conv, norm] += 1

    handles = []
    for module in detector.modules():
        if _is_foldable(module):
            handles.append(module.register_forward_pre_hook(before_norm))
        elif _is_plain(module):
            if getattr(module, "norm", None) is None and getattr(module, "activation", None) is None:
                handles.append(module.register_forward_hook(after_conv))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for (conv, norm), count in pairs.items() if count == calls[conv] == calls[norm]]
