"""Critics that are only heard: called at less cost than a host calls its own, without a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from marl.modules.onednn import is_large, linear, wanted


def quick(shortcuts: Shortcuts) -> AbstractContextManager[None]:
    """``shortcuts``, or nothing where there are none or the caller is being compiled."""
    gains = not torch.compiler.is_compiling() and (shortcuts.chains or (shortcuts.large and wanted()))
    return shortcuts if gains else nullcontext()


class Shortcuts(AbstractContextManager[None]):
    """``with quick(Shortcuts(critic)):`` its calls cost less; for calls without gradient.

    - In an ``nn.Sequential`` a ReLU overwrites what the ``nn.Linear`` before it has just made: the same numbers, half
      the memory to write to.
    - Large linear layers run by oneDNN where that is quicker (``onednn``): the same sums in another order. Small ones
      are quicker by MKL.

    Parts are those which the critic has when this is made; of a critic that is no module, or compiled, none. What has
    a ``forward`` of its own keeps it, and nothing is overwritten that somebody else sees.
    """

    def __init__(self, critic: Callable[..., Any]) -> None:
        self.parts = list(critic.modules()) if isinstance(critic, nn.Module) else []
        known = [] if any(hasattr(part, "_orig_mod") for part in self.parts) else self.parts
        self.large = [part for part in known if type(part) is nn.Linear and is_large(part)]
        self.chains = [
            (chain, pairs) for chain in known if type(chain) is nn.Sequential and (pairs := _pairs(chain, known))
        ]
        self.held: list[nn.Module] = []

    def __enter__(self) -> None:
        self.held = []
        if any(part._compiled_call_impl is not None for part in self.parts):
            return
        for chain, pairs in self.chains:
            self._hold(chain, partial(_overwriting, chain, [relu for layer, relu in pairs if not _seen(layer, relu)]))
        for layer in self.large if wanted() else ():
            self._hold(layer, partial(linear, layer))

    def _hold(self, part: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        if "forward" not in vars(part):
            vars(part)["forward"] = forward
            self.held.append(part)

    def __exit__(self, *_: object) -> None:
        for part in self.held:
            vars(part).pop("forward", None)  # another thread may have been here


def _pairs(chain: nn.Sequential, parts: Sequence[nn.Module]) -> list[tuple[nn.Linear, nn.ReLU]]:
    """Its linear layers and the ReLUs behind them, without ReLUs that stand in several places of the critic."""
    places = Counter(id(child) for part in parts for child in part._modules.values())
    return [
        (layer, relu)
        for layer, relu in pairwise(chain)
        if type(layer) is nn.Linear and type(relu) is nn.ReLU and not relu.inplace and places[id(relu)] == 1
    ]


def _seen(layer: nn.Linear, relu: nn.ReLU) -> bool:
    """Whether somebody else sees what the layer makes, or makes it."""
    return bool(layer._forward_hooks or relu._forward_pre_hooks or relu._forward_hooks or "forward" in vars(layer))


def _overwriting(chain: nn.Sequential, relus: Sequence[nn.ReLU], input: Any) -> Any:
    """What the chain answers."""
    for relu in relus:
        vars(relu)["inplace"] = True
    try:
        return nn.Sequential.forward(chain, input)
    finally:
        for relu in relus:
            vars(relu)["inplace"] = False
