"""Large float32 products by oneDNN, on processors where MKL is slow.

Torch leaves float32 products on the CPU to MKL, which takes twice as long as need be on processors with AVX-512 that
are not Intel's. oneDNN comes with torch too, but is asked only where a lower precision is allowed: on a processor that
has no such arithmetic it then computes in float32 all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 2**15
"""Numbers in a weight from which on oneDNN gains more than its calls cost: 128 x 256."""

_PRODUCTS: Any = getattr(torch.backends.mkldnn, "matmul", None)  # older torch has none


def is_large(network: nn.Module) -> bool:
    """Whether it has a large weight."""
    return any(weight.numel() >= LARGE for weight in network.parameters())


def onednn() -> AbstractContextManager[None]:
    """All float32 products by oneDNN, where it is as exact as MKL and quicker: the same sums in another order.

    For networks that are large: small products are quicker by MKL. ``torch.backends.mkldnn.enabled = False`` leaves all
    of them to MKL.
    """
    return _allowed() if _wanted() else nullcontext()


def quick(layers: LargeLayers) -> AbstractContextManager[None]:
    """``layers``, or nothing where there are none or a graph is being compiled."""
    return layers if layers.layers and not torch.compiler.is_compiling() else nullcontext()


class LargeLayers(AbstractContextManager[None]):
    """``with quick(LargeLayers(critic)):`` calls of it compute its large linear layers as ``onednn`` would.

    Small layers are quicker by MKL. Layers are those which the critic has when this is made; of a critic that is no
    module, or compiled, none.
    """

    def __init__(self, critic: Callable[..., Any]) -> None:
        parts = list(critic.modules()) if isinstance(critic, nn.Module) else []
        compiled = any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in parts)
        self.layers = [part for part in parts if type(part) is nn.Linear and is_large(part) and not compiled]

    def __enter__(self) -> None:
        self.held = self.layers if _wanted() else []
        before = _precision() if self.held else ""
        for layer in self.held:
            layer.__dict__["forward"] = partial(_linear, layer, before)

    def __exit__(self, *_: object) -> None:
        for layer in self.held:
            layer.__dict__.pop("forward", None)  # another thread may have been here


def _linear(layer: nn.Linear, before: str, x: Tensor) -> Tensor:
    _set_precision("bf16")
    try:
        return nn.functional.linear(x, layer.weight, layer.bias)
    finally:
        _set_precision(before)


@contextmanager
def _allowed() -> Iterator[None]:
    before = _precision()
    _set_precision("bf16")
    try:
        yield
    finally:
        _set_precision(before)


def _precision() -> str:
    return str(_PRODUCTS.fp32_precision)


def _set_precision(precision: str) -> None:
    """That of products on the CPU: with less than float32's allowed, torch asks oneDNN for them."""
    _PRODUCTS.fp32_precision = precision


def _wanted() -> bool:
    return not torch.compiler.is_compiling() and bool(torch.backends.mkldnn.enabled) and _gains()


@cache
def _gains() -> bool:
    """Whether this is a processor on which MKL is slow and oneDNN exact."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if _PRODUCTS is None or not hasattr(torch.cpu, "get_capabilities"):
        return False
    intel = "Intel" in torch.cpu.get_capabilities().get("cpu_name", "Intel")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel and _exact()


def _exact() -> bool:
    """Whether oneDNN keeps 13 bits of a number, as float32 does and bfloat16 with its 8 does not."""
    with torch.no_grad(), _allowed():
        product = torch.ones(64, 256) @ torch.full((256, 256), 1 + 2**-12)
    return torch.equal(product, torch.full((64, 256), 256 + 2**-4))
