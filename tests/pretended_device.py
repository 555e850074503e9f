"""
A device to test on where there is none: the CPU's numbers, a GPU's rules of placement, each wait for it counted.

It is torch's ``PrivateUse1`` backend in Python. Inside :class:`PretendedDevice` tensors can be made on, and moved to,
``torch.device("pretended")``. What it cannot show: cuDNN, NCCL, all that CUDA's autocast casts, time.

Must not import detectron2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.cuda_device import innermost_line
from tests.pretended_backend import BACKEND, DEVICE

__all__ = ["DEVICE", "PretendedDevice"]

#: Operators that hand a number, or a size that hangs on numbers, to the host.
_BLOCKING = (
    "_local_scalar_dense",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
)
#: Operators that CUDA refuses under ``torch.use_deterministic_algorithms(True)``.
_NOT_DETERMINISTIC = (
    "bincount",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "median.dim",
    "nll_loss2d_backward",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "replication_pad2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "_adaptive_avg_pool2d_backward",
)


class _OnDevice(Tensor):
    """A tensor of the device, around the one of the CPU that has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnDevice:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch has no annotation for it
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"_OnDevice({self.held})"

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _OnDevice, (self.held,)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func} on a tensor of the pretended device, outside of PretendedDevice.")


class _Operators(TorchDispatchMode):
    """Runs operators of the device on the CPU."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.device.run(func, args, dict(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Catches what makes tensors of lists, and lists of tensors, which operators do not show."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        own = args[0] if args and isinstance(args[0], _OnDevice) else None
        if func in (torch.tensor, torch.as_tensor) and own is None:
            if _is_ours(kwargs.get("device") or torch.get_default_device()):
                return self.device.made_of_list(func(*args, **kwargs | {"device": "cpu"}))
        if func is Tensor.new_tensor and _is_ours(kwargs.get("device", args[0].device)):
            dtype = kwargs.get("dtype") or args[0].dtype
            return self.device.made_of_list(torch.tensor(args[1], dtype=dtype, device="cpu"))
        if func is Tensor.tolist and own is not None:
            self.device.note(self.device.syncs, "tolist")
            return own.held.tolist()
        if func is Tensor.numpy and own is not None:
            raise TypeError("can't convert a tensor of the pretended device to numpy: use Tensor.cpu() first")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and own is not None:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, list) for i in index):
                made = self.device.made_of_list
                index = tuple(made(torch.tensor(i, device="cpu")) if isinstance(i, list) else i for i in index)
                args = (own, index, *args[2:])
        return func(*args, **kwargs)


class PretendedDevice:
    """
    Inside, the device is there.

    Attributes:
        syncs: line -> how often the host waited there for a number of the device.
        copies: line -> how often numbers of the host were copied to the device, the host waiting.
    """

    device = DEVICE

    def __init__(self) -> None:
        self.syncs: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._inside = ExitStack()

    def __enter__(self) -> PretendedDevice:
        BACKEND.present = True
        # A module's parameters are replaced, as they are where the kind of storage changes.
        future = torch.__future__
        self._inside.callback(
            future.set_overwrite_module_params_on_conversion, future.get_overwrite_module_params_on_conversion()
        )
        future.set_overwrite_module_params_on_conversion(True)
        # In the caller's thread, whose lines can be named; one of its own may end after the interpreter.
        self._inside.enter_context(torch.autograd.set_multithreading_enabled(False))
        self._inside.enter_context(_Functions(self))
        self._inside.enter_context(_Operators(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()
        BACKEND.present = False

    @property
    def waits(self) -> Counter[str]:
        """line -> how often the host waited there, for a number or for a copy."""
        return self.syncs + self.copies

    def reset(self) -> None:
        self.syncs.clear()
        self.copies.clear()

    def note(self, counter: Counter[str], what: str) -> None:
        counter[f"{innermost_line()} ({what})"] += 1

    def made_of_list(self, held: Tensor) -> Tensor:
        self.note(self.copies, "of a list")
        return _OnDevice(held)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operator."""
        name = func._schema.name.removeprefix("aten::")
        flat, _ = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        ours = any(isinstance(x, _OnDevice) for x in tensors)
        wanted = kwargs.get("device")
        onto_ours = ours if wanted is None else _is_ours(wanted)
        if ours:
            self._check_placement(name, args, tensors)
            self._count(func, name, args)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu") if onto_ours else wanted
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            target_ours = onto_ours if name == "_to_copy" else isinstance(args[0], _OnDevice)
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if isinstance(source, _OnDevice) and not target_ours:
                self.note(self.syncs, "to the CPU")
            elif target_ours and not isinstance(source, _OnDevice) and waits:
                self.note(self.copies, "to the device")
        held_args, held_kwargs = (tree_map(_held, x) for x in (args, kwargs))
        if name == "torchvision::nms":  # a GPU's takes scores of another dtype, as Detectron2 gives them to it
            held_args = (held_args[0], held_args[1].to(held_args[0].dtype), *held_args[2:])
        draws = onto_ours and torch.Tag.nondeterministic_seeded in func.tags
        with _own_random_numbers() if draws else nullcontext():
            out = func(*held_args, **held_kwargs)
        if not onto_ours or out is None:
            return out
        if torch.Tag.inplace_view in func.tags:
            with no_dispatch():  # the wrapper's own sizes
                return func(*args, **kwargs)
        returns = func._schema.returns
        written = len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write
        if written and isinstance(args[0], _OnDevice):
            return args[0]
        return tree_map(_wrapped, out)

    def _check_placement(self, name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
        """As on a GPU, numbers of the CPU may be there as scalars and as indices alone."""
        if name in ("copy_", "_to_copy"):
            return
        elsewhere = [x for x in tensors if not isinstance(x, _OnDevice)]
        if name in ("index", "index_put", "index_put_") and isinstance(args[0], _OnDevice):
            for index in args[1]:
                if index is not None and not isinstance(index, _OnDevice):
                    self.note(self.copies, "an index of the CPU")
            elsewhere = [x for x in args[2:3] if not isinstance(x, _OnDevice)]
        wrong = [x for x in elsewhere if x.dim() > 0]
        if name.endswith("_") and isinstance(args[0], Tensor) and not isinstance(args[0], _OnDevice):
            wrong = [args[0]]
        if wrong:
            shapes = ", ".join(str(tuple(x.shape)) for x in wrong)
            raise RuntimeError(
                f"Expected all tensors to be on {DEVICE}, but {name} got one on the CPU of shape {shapes}"
            )

    def _count(self, func: Any, name: str, args: tuple[Any, ...]) -> None:
        full_name = f"{name}.{func._overloadname}"
        refused = name in _NOT_DETERMINISTIC or full_name in _NOT_DETERMINISTIC
        refused |= name == "cumsum" and args[0].is_floating_point()  # in older releases of torch
        if refused and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{full_name} has no deterministic implementation on {DEVICE}")
        if name in _BLOCKING or full_name in _BLOCKING:
            self.note(self.syncs, name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            for _ in masks:
                self.note(self.syncs, "boolean index")


def _is_ours(device: object) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type  # type: ignore[call-overload]  # any kind


def _held(x: Any) -> Any:
    return x.held if isinstance(x, _OnDevice) else x


def _wrapped(x: Any) -> Any:
    return _OnDevice(x) if isinstance(x, Tensor) and not isinstance(x, _OnDevice) else x


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Inside, the CPU draws the device's."""
    before = torch.get_rng_state()
    torch.set_rng_state(BACKEND.generator.get_state())
    try:
        yield
    finally:
        BACKEND.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)
