"""Large float32 products by oneDNN, on processors where MKL is slow.

Torch leaves float32 products on the CPU to MKL, which takes twice as long as need be on processors with AVX-512 that
are not Intel's. oneDNN comes with torch too, but is asked only where a lower precision is allowed: on a processor that
has no such arithmetic it then computes in float32 all the same.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 2**15
"""Numbers in a weight from which on oneDNN gains more than its calls cost: 128 x 256."""

_PRODUCTS: Any = getattr(torch.backends.mkldnn, "matmul", None)  # older torch has none


def is_large(network: nn.Module) -> bool:
    """Whether it has a large weight."""
    known = (weight for weight in network.parameters() if not nn.parameter.is_lazy(weight))
    return any(weight.numel() >= LARGE for weight in known)


def onednn() -> AbstractContextManager[None]:
    """All float32 products by oneDNN, where it is as exact as MKL and quicker: the same sums in another order.

    For networks that are large: small products are quicker by MKL. ``torch.backends.mkldnn.enabled = False`` leaves all
    of them to MKL.
    """
    return _ALLOWED if wanted() else nullcontext()


def linear(layer: nn.Linear, input: Tensor) -> Tensor:
    """What the layer answers, computed as in ``onednn``, wanted or not."""
    _ALLOWED.__enter__()
    try:
        return nn.functional.linear(input, layer.weight, layer.bias)
    finally:
        _ALLOWED.__exit__()


class _Allowed(AbstractContextManager[None]):
    """Where torch may ask oneDNN for float32 products: it does where less than their precision is allowed.

    A setting of the whole process: the last thread that leaves puts it back.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = _PRODUCTS.fp32_precision
                _PRODUCTS.fp32_precision = "bf16"
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                _PRODUCTS.fp32_precision = self.before


_ALLOWED = _Allowed()


def wanted() -> bool:
    """Whether ``onednn`` does anything here and now."""
    return not torch.compiler.is_compiling() and _gains() and bool(torch.backends.mkldnn.enabled)


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
    plain: Any = {"dtype": torch.float32, "device": "cpu"}
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _ALLOWED:
        product = torch.ones(64, 256, **plain) @ torch.full((256, 256), 1 + 2**-12, **plain)
    return torch.equal(product, torch.full((64, 256), 256 + 2**-4, **plain))
