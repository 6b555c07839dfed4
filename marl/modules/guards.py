"""What reciprocity refuses of what other people's code hands over, and when it may look at the numbers in a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from marl.types import UserError

_HOW = {
    "numpy": "torch.from_numpy makes one",
    "jax": "torch.from_dlpack makes one",
    "jaxlib": "torch.from_dlpack makes one",
}


def refuse_array(what: str, value: Any) -> None:
    """Raise ``UserError`` for an array of NumPy or JAX."""
    if isinstance(value, (Tensor, list, tuple)):
        return
    package = type(value).__module__.split(".")[0]
    if package in _HOW:
        raise UserError(f"{what}: expected a torch.Tensor, got {package}.{type(value).__name__}; {_HOW[package]}")


def require_tensor(what: str, value: Any) -> None:
    """Raise ``UserError`` for anything but a tensor of torch: nothing is converted."""
    if not isinstance(value, Tensor):
        refuse_array(what, value)
        raise UserError(f"{what}: expected a torch.Tensor, got {type(value).__name__}")


def require_floating(what: str, tensor: Tensor) -> None:
    """Raise ``UserError`` for values that are no fractions: weights would be rounded to them."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{what}: expected values in floating point, got {kind}")


def checked_kappa(kappa: Any, what: str = "kappa") -> float:
    """Kappa as a float; raises ``UserError`` for anything but a number in [0, 1]."""
    if not isinstance(kappa, Real) or not 0 <= float(kappa) <= 1:
        found = repr(kappa) if isinstance(kappa, Real | str) else type(kappa).__name__
        raise UserError(f"{what}: expected a number from 0 to 1, got {found}")
    return float(kappa)


def same_device(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``UserError`` where one of the named tensors lies on another device than the first."""
    (first, model), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != model.device:
            raise UserError(
                f"{name}: expected on {model.device}, where {first} lies, got {tensor.device}; nothing is moved for you"
            )


def batched(tensor: Tensor) -> bool:
    """Whether it stands for many tensors at once, inside ``torch.func.vmap`` (or another transform of torch.func)."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def passing() -> bool:
    """Whether tensors made now may not be kept: in a compiled graph, a transform of torch.func, a mode of torch."""
    return (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


@contextmanager
def as_usual() -> Iterator[None]:
    """Operations in here do what they always do: no transform of torch.func and no mode of torch has a part in them."""
    if torch.compiler.is_compiling():
        yield
    else:
        with torch._C._DisableFuncTorch(), _disable_current_modes():
            yield


def readable(tensor: Tensor) -> bool:
    """Whether Python may look at the numbers now: not inside a compiled graph or a vmap, nor on the device meta."""
    return not torch.compiler.is_compiling() and not tensor.is_meta and not batched(tensor)


_uncompiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def outside_the_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which breaks a compiled graph and runs as it is.

    Made when first needed, because importing the compiler takes a second.
    """
    if not torch.compiler.is_compiling():
        return function
    if function not in _uncompiled:
        _uncompiled[function] = torch.compiler.disable(function)
    return _uncompiled[function]


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """No autocast for what is computed with this tensor: values are mixed in the precision in which they arrive."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
