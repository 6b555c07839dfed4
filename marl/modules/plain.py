"""How a plain list of critics is asked: each at its own state, and at the adjacent states of those who hear it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace, Exact
from marl.modules.guards import require_floating, require_tensor, same_device
from marl.modules.quick import Shortcuts, quick
from marl.modules.sizes import Alike, fitted
from marl.types import UserError


class Critics:
    """N critics ``critic(state, *rest) -> [B, *]`` and one batch of G states (N, or 1 joint) to ask them about.

    To be asked where no gradient is recorded.

    Args:
        critics: N of them.
        sizes: how critic j reads agent i's state.
        rest: each further argument, G entries.
        shortcuts: for each critic. None: there are none.
    """

    def __init__(
        self,
        critics: Sequence[Callable[..., Tensor]],
        sizes: Alike,
        rest: Sequence[Sequence[Any]],
        shortcuts: Sequence[Shortcuts] | None,
    ) -> None:
        self.critics, self.sizes, self.rest, self.shortcuts = critics, sizes, rest, shortcuts
        self.first: tuple[int, Tensor] | None = None  # the critic that answered first, and what

    def ask(self, j: int, i: int, state: Tensor, groups: int, own: bool = False) -> Tensor:
        """Critic j at agent i's state ``[B, D]`` of G: ``[B, *]``; raises ``UserError`` where that fits no other's.

        With ``own`` it is called as the host would call it, to the bit: without shortcuts.
        """
        i, home = i % groups, j % groups
        entries = [entries[i] if i == home else _like(entries[i], entries[home]) for entries in self.rest]
        state = self.sizes.read(state, i, home).clone()  # critics may write into it, and others read it
        if own or self.shortcuts is None:
            value = self.critics[j](state, *entries)
        else:
            with quick(self.shortcuts[j]):
                value = self.critics[j](state, *entries)
        require_tensor(f"answer of critic {j}", value)
        if self.first is None:
            check_answer(j, value, state)
            self.first = j, value
        else:
            check_alike(j, value, *self.first)
        return value

    def own(self, states: Sequence[Tensor]) -> Tensor:
        """Critic j at its own one of G states ``[B, D]``: ``[N, B, *]``."""
        groups = len(states)
        return torch.stack([self.ask(j, j, states[j % groups], groups, own=True) for j in range(len(self.critics))])

    def alone(self, near: Sequence[Sequence[Tensor]], only: Sequence[int]) -> Tensor:
        """Critic ``only[i]`` at the adjacent states of i, S times G of ``[B, D]``: ``[S, N, B, *]``."""
        groups = len(near[0])
        answers = [self.ask(j, i, states[i % groups], groups) for states in near for i, j in enumerate(only)]
        return torch.stack(answers).unflatten(0, (len(near), len(only)))

    def heard(self, near: Sequence[Sequence[Tensor]], listens: Sequence[Sequence[bool]] | None) -> Tensor:
        """Critic j at the adjacent states of i: ``[S, G, N, B, *]``, after ``own``.

        Args:
            near: S times G states ``[B, D]``.
            listens: ``listens[i][j]``: whether agent i hears critic j; what nobody hears is 0, not asked. None: all.
        """
        assert self.first is not None
        nothing, agents, groups = torch.zeros_like(self.first[1]), range(len(self.critics)), len(near[0])

        def wanted(i: int, j: int) -> bool:
            return listens is None or any(listens[k][j] for k in (agents if groups == 1 else [i]))

        answers = [
            self.ask(j, i, states[i], groups) if wanted(i, j) else nothing
            for states in near
            for i in range(groups)
            for j in agents
        ]
        return torch.stack(answers).unflatten(0, (len(near), groups, len(agents)))


def as_list(critics: Any) -> list[Any]:
    """Critics one by one; raises ``UserError`` for one alone, and for a mapping, which would be its keys."""
    alone = isinstance(critics, torch.nn.Module) and not isinstance(critics, torch.nn.ModuleList)
    if alone or isinstance(critics, Mapping) or not isinstance(critics, Iterable):
        raise UserError(f"critics: expected a sequence, one for each agent, got {type(critics).__name__}")
    return list(critics)


def check_answer(j: int, value: Tensor, states: Tensor) -> None:
    """Raise ``UserError`` for anything but fractions, one row for each of the states ``[B, D]``, where these lie."""
    if value.device != states.device:
        same_device({"states": states, f"answer of critic {j}": value})
    if value.shape[:1] != states.shape[:1]:
        raise UserError(f"critic {j}: expected shape [{len(states)}, ...], a row a state, got {list(value.shape)}")
    if not value.is_floating_point():
        require_floating(f"critic {j}", value)


def check_alike(j: int, value: Tensor, k: int, model: Tensor) -> None:
    """Raise ``UserError`` unless critic j answered as critic k did: in that shape on that device."""
    if value.device != model.device:
        same_device({"states": model, f"answer of critic {j}": value})  # the model's answer lies where they do
    if value.shape != model.shape:
        raise UserError(
            f"critic {j}: expected shape {list(model.shape)} as critic {k} answered, got {list(value.shape)}"
        )


def check_state(name: str, state: Any, space: AdjacencySpace) -> None:
    """Raise ``UserError`` for anything but a tensor of a shape from which that space makes adjacent states."""
    require_tensor(name, state)
    if state.dim() < 2 or (state.dim() > 2 and not isinstance(space, Exact)):
        raise UserError(f"{name}: expected shape [B, D] (any [B, ..., D] with exact or peer), got {list(state.shape)}")


def _like(entry: Any, model: Any) -> Any:
    """A tensor ``[B, A]`` cut or filled with zeros to the model's width; anything else as it is."""
    return fitted(entry, model.shape[-1]) if isinstance(entry, Tensor) and entry.dim() > 1 else entry
