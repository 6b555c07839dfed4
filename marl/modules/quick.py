"""Critics that are only heard: called at less cost than a host calls its own, without a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every

from marl.modules.onednn import is_large, linear, wanted

_NOTHING = nullcontext()


def quick(shortcuts: Shortcuts) -> AbstractContextManager[None]:
    """``shortcuts``, or nothing where there are none or the caller is being compiled."""
    gains = shortcuts.chains or (shortcuts.layers and wanted())
    return shortcuts if gains and not torch.compiler.is_compiling() else _NOTHING


class Shortcuts(AbstractContextManager[None]):
    """``with quick(Shortcuts(critic)):`` calls of it without gradient cost less, if it is large.

    - In an ``nn.Sequential`` a ReLU overwrites what the ``nn.Linear`` before it has just made: the same numbers, half
      the memory to write to.
    - Large linear layers run by oneDNN where that is quicker (``onednn``): the same sums in another order. Small ones
      are quicker by MKL.

    Chains and layers are those which the critic has when this is made; of a critic that is no module, compiled, or
    copied at each call (``DataParallel``), none. What is in them, and whether a hook looks on, is asked at each call;
    one with a ``forward`` of its own keeps it. May be entered again inside, and by several threads.
    """

    def __init__(self, critic: Callable[..., Any]) -> None:
        self.parts = list(critic.modules()) if isinstance(critic, nn.Module) else []
        other = any(hasattr(part, "_orig_mod") or isinstance(part, nn.DataParallel) for part in self.parts)
        known = [] if other else self.parts
        self.chains = [
            (part, partial(_chain, part)) for part in known if type(part) is nn.Sequential and is_large(part)
        ]
        self.layers = [(part, partial(_layer, part)) for part in known if type(part) is nn.Linear and is_large(part)]
        self.inside = 0

    def __enter__(self) -> None:
        with _LOCK:
            self.inside += 1
            if self.inside > 1:
                return
            for part in self.parts:
                if part._compiled_call_impl is not None:
                    return
            for part, forward in [*self.chains, *self.layers] if wanted() else self.chains:
                vars(part).setdefault("forward", forward)

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            self.inside -= 1
            if self.inside:
                return
            for part, forward in [*self.chains, *self.layers]:
                if vars(part).get("forward") is forward:
                    del vars(part)["forward"]


_LOCK = threading.Lock()


def _chain(chain: nn.Sequential, input: Any) -> Any:
    """What the chain answers, each ReLU writing over what the linear layer before it has made."""
    if _as_ever(chain, nn.Sequential):
        return type(chain).forward(chain, input)
    fresh = False
    for part in chain:
        overwrites = fresh and _alone(part, nn.ReLU)
        input = nn.functional.relu(input, inplace=True) if overwrites else part(input)
        fresh = _alone(part, nn.Linear)
    return input


def _layer(layer: nn.Linear, input: Tensor) -> Tensor:
    """What the layer answers, by oneDNN."""
    return type(layer).forward(layer, input) if _as_ever(layer, nn.Linear) else linear(layer, input)


def _as_ever(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether this call takes no shortcut: it may be differentiated or compiled, or the part is of another kind now."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or type(part) is not kind


def _alone(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of just that kind, and no hook sees what comes in and goes out."""
    if type(part) is not kind or part._forward_hooks or part._forward_pre_hooks:
        return False
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        return False
    forward = vars(part).get("forward")
    return forward is None or getattr(forward, "func", None) is _layer
