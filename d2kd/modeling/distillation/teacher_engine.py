"""What the teacher computes with: its precision, and its layers merged or compiled. Checked against the plain one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from d2kd.modeling.adapters import check_lists, guarded_hooks
from d2kd.modeling.detectors.interface import inference_of, pixel_statistics
from d2kd.modeling.distillation.norm_folding import fold_norms, is_batch_norm, rectify_in_place

__all__ = ["TeacherEngine", "own_precision"]

# Below Detectron2's logger: whichever trainer runs has set that one up.
logger = logging.getLogger(f"detectron2.{__name__}")

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("eager", "folded", "compile")

#: Largest difference from the plain teacher in fp32, as a share of the largest magnitude of the same kind of maps.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TeacherEngine:
    """
    Args:
        precision, engine: see :class:`Teacher`.

    Raises:
        ValueError: an option that does not exist.
    """

    precision: str
    engine: str

    def __post_init__(self) -> None:
        for field, value, options in (("precision", self.precision, PRECISIONS), ("engine", self.engine, ENGINES)):
            if value not in options:
                raise ValueError(
                    f"model.teacher.{field} is {value!r}, expected one of {', '.join(map(repr, options))} (in a yacs "
                    f"config: MODEL.DISTILLATION.TEACHER_{field.upper()})."
                )

    @property
    def dtype(self) -> torch.dtype | None:
        """What the teacher's weights are cast to; None: they are not."""
        return PRECISIONS[self.precision]

    def make(self, plain: DenseDetector, canvas: tuple[int, int]) -> DenseDetector:
        """
        A copy of a frozen detector that computes as the options say; the detector itself if they change nothing. It
        takes images and returns predictions as the plain one does, but with maps in its own dtype. Pixel statistics and
        anchors keep theirs, since images are normalised and boxes decoded in fp32; so do batch norms that stay, whose
        variances may not fit in fp16.

        Args:
            plain: in eval mode, on its device.
            canvas: (H, W) of the smallest image that its backbone takes.
        """
        if self.engine == "eager" and self.dtype is None:
            return plain
        detector = deepcopy(plain) if self.engine == "eager" else _folded(plain, canvas)
        memory_format = torch.preserve_format if self.engine == "eager" else torch.channels_last
        for part in (detector.backbone, detector.head):
            for module in part.modules():
                if not is_batch_norm(module):
                    module._apply(partial(_cast, dtype=self.dtype), recurse=False)
                elif self.dtype is not None:
                    module.register_forward_hook(_in_its_dtype)
            if memory_format is torch.channels_last:
                part.to(memory_format=memory_format)
        detector.backbone.register_forward_pre_hook(_Enter(self.dtype, memory_format))
        detector.head.register_forward_hook(_leave)
        if self.dtype is not None:
            infer_in_fp32 = partial(_infer_in_fp32, inference_of(detector))
            object.__setattr__(detector, "forward_inference", infer_in_fp32)
        detector.eval()  # with what folding put in
        if self.engine == "compile":
            # In place, since torch.compile(module) would put another module around it.
            detector.backbone.compile()
            detector.head.compile()
        return detector

    @torch.no_grad()
    def check(self, plain: DenseDetector, detector: DenseDetector, images: Tensor) -> None:
        """
        Compare what :meth:`make` made with what it was made from; logs the largest difference.

        Args:
            images: (N, C, H, W), normalised.

        Raises:
            ValueError: a difference that is no rounding, or values that are not finite where those of ``plain`` are.
        """
        with torch.autocast(images.device.type, enabled=False):
            largest = _largest_difference(detector, plain, images)
        made = f"with model.teacher.precision={self.precision} and engine={self.engine}"
        logger.info("The teacher %s differs from the plain one by %.1e of the largest value.", made, largest)
        if self.dtype is None and not largest <= _tolerance(plain):
            raise ValueError(
                f"The teacher {made} differs from the plain one by {largest:.1e} of the largest value, expected at "
                f"most {_tolerance(plain):.0e}: set model.teacher.engine=eager."
            )
        if not math.isfinite(largest):
            raise ValueError(
                f"The teacher {made} has values that are not finite where the plain one's are: set "
                "model.teacher.precision to bf16 or fp32."
            )

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """What ``nn.Module._apply`` is to do for ``fn``: a teacher of its own precision follows the device alone."""

        def move(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return fn if self.dtype is None else move


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _in_its_dtype(norm: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook of an fp32 norm among layers of half precision: frozen ones of torchvision and timm return fp32."""
    return output.to(args[0].dtype)


class _Enter:
    """Forward pre-hook that gives the images the dtype and layout of the layers."""

    def __init__(self, dtype: torch.dtype | None, memory_format: torch.memory_format) -> None:
        self.dtype = dtype
        self.memory_format = memory_format

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (images,) = args
        return (images.to(dtype=self.dtype or images.dtype, memory_format=self.memory_format),)


def _leave(module: nn.Module, args: object, predictions: list[list[Tensor]]) -> list[list[Tensor]]:
    """Forward hook that gives the predictions the layout of the student's, with which losses compare them."""
    return tree_map_only(Tensor, Tensor.contiguous, predictions)


def _infer_in_fp32(
    infer: Callable[..., list[Instances]],
    images: ImageList,
    features: list[Tensor],
    predictions: list[list[Tensor]],
) -> list[Instances]:
    """NMS knows no half precision on a CPU, and boxes need more."""
    return infer(images, features, tree_map_only(Tensor, Tensor.float, predictions))


@torch.no_grad()
def _folded(plain: DenseDetector, canvas: tuple[int, int]) -> DenseDetector:
    """A copy with merged layers; without, and with a warning, where that would change what it computes."""
    detector = deepcopy(plain)
    pixel_mean, _ = pixel_statistics(plain)
    height, width = (side * -(-64 // side) for side in canvas)
    noise = torch.rand(2, len(pixel_mean), height, width, generator=torch.Generator().manual_seed(0)).to(pixel_mean)
    with torch.autocast(noise.device.type, enabled=False):
        try:
            fold_norms(detector, partial(_forward, detector, noise))
            rectify_in_place(detector)
            difference = _largest_difference(detector, plain, noise)
            reason = None if difference <= _tolerance(plain) else f"it would differ by {difference:.1e}"
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error)
    if reason is not None:
        logger.warning("The teacher's norms are not folded into its convolutions: %s.", reason)
        return deepcopy(plain)
    return detector


def _tolerance(plain: DenseDetector) -> float:
    return max(_TOLERANCE, 16 * torch.finfo(pixel_statistics(plain)[0].dtype).eps)


def _forward(detector: DenseDetector, images: Tensor) -> list[list[Tensor]]:
    """The features, and all that the head returns: of each kind one map a level."""
    maps = detector.backbone(images)
    features = [maps[name] for name in detector.head_in_features]
    with guarded_hooks():
        predictions = detector.head(features)
    check_lists(detector, predictions)
    kinds = [features, *predictions]
    return [maps for kind in kinds if (maps := [x for x in tree_leaves(kind) if isinstance(x, Tensor)])]


def _largest_difference(detector: DenseDetector, plain: DenseDetector, images: Tensor) -> float:
    # On a GPU convolutions round their inputs to TF32 by default: more than the difference that is looked for.
    kept = {name: getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with torch.backends.cudnn.flags(**kept, allow_tf32=False):
        expected = _forward(plain, images.to(pixel_statistics(plain)[0].dtype))
        found = _forward(detector, images)
    return torch.stack([_difference(x, y) for x, y in zip(found, expected, strict=True)]).max().item()


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """
    Largest difference of any level's map as a share of the largest magnitude on all levels: a level may have nothing
    but rounding. Not finite where ``found`` alone is not.
    """
    differences, magnitudes = [], []
    for x, y in zip(found, expected, strict=True):
        y = y.double()
        finite = y.isfinite()
        differences.append(torch.where(finite, x - y, 0).abs().max())
        magnitudes.append(torch.where(finite, y, 0).abs().max())
    return torch.stack(differences).max() / torch.stack(magnitudes).max().clamp(min=torch.finfo(torch.float32).tiny)


def own_precision(detector: DenseDetector) -> AbstractContextManager[object]:
    """Inside, layers of half precision run without autocast, which would cast their weights at every call."""
    half = any(x.dtype in (torch.bfloat16, torch.float16) for x in detector.head.parameters())
    return torch.autocast(detector.device.type, enabled=False) if half else nullcontext()
