"""How a plain list of critics is asked: one call for each critic, over all the states at which it must answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.modules.guards import require_tensor, same_device
from marl.modules.sizes import Alike, fitted
from marl.types import UserError


class Critics:
    """N critics ``critic(state, *rest) -> [B, *]`` and one batch of G states (N, or 1 joint) to ask them about.

    Args:
        critics: N of them. A critic answers each row by itself, so that rows of several states may come in one call.
        sizes: how critic j reads agent i's state.
        rest: each further argument, G entries. Where one is no tensor of B rows, each state is a call of its own.
    """

    def __init__(
        self, critics: Sequence[Callable[..., Tensor]], sizes: Alike, rest: Sequence[Tensor | Sequence[Any]]
    ) -> None:
        self.critics, self.sizes, self.rest = critics, sizes, rest
        self.first: tuple[int, Tensor] | None = None  # the critic that answered first, and what

    def ask(self, j: int, about: Sequence[tuple[int, Tensor]], groups: int) -> list[Tensor]:
        """What critic j says ``[B, *]`` about each ``(i, state [B, D])``, without gradient."""
        home, rows = j % groups, len(about[0][1])
        calls = [
            (self.sizes(state, i, home), *(_like(entries[i], entries[home]) for entries in self.rest))
            for i, state in about
        ]
        if len(calls) > 1 and all(_in_rows(entry, rows) for call in calls for entry in call):
            joined = [torch.cat(entries) for entries in zip(*calls, strict=True)]
            return list(self._checked(j, self.critics[j](*joined), joined[0], rows).split(rows))
        return [self._checked(j, self.critics[j](*call), call[0], rows) for call in calls]

    def _checked(self, j: int, value: Any, state: Tensor, rows: int) -> Tensor:
        """The answer, detached; raises ``UserError`` for one that is not as the others are."""
        require_tensor(f"answer of critic {j}", value)
        if value.device != state.device:
            same_device({"states": state, f"answer of critic {j}": value})
        if value.shape[:1] != state.shape[:1]:
            raise UserError(
                f"critic {j}: expected shape [{len(state)}, ...], a row for each state, got {list(value.shape)}"
            )
        answer: Tensor = value.detach()
        k, model = self.first = self.first or (j, answer[:rows])
        if answer.shape[1:] != model.shape[1:]:
            expected = [len(state), *model.shape[1:]]
            raise UserError(f"critic {j}: expected shape {expected} as critic {k} answered, got {list(answer.shape)}")
        return answer

    def own(self, states: Tensor) -> Tensor:
        """Critic j at its own state of ``[G, B, D]``: ``[N, B, *]``."""
        groups = len(states)
        return torch.stack(
            [self.ask(j, [(j % groups, states[j % groups])], groups)[0] for j in range(len(self.critics))]
        )

    def own_and_heard(
        self, states: Tensor, near: Sequence[Tensor], listens: Sequence[Sequence[bool]] | None
    ) -> tuple[Tensor, Tensor]:
        """``[N, B, *]``, critic j at its own state, and ``[S, G, N, B, *]``, critic j at the adjacent states.

        Args:
            states: ``[G, B, D]``.
            near: S times the same shape.
            listens: ``listens[i][j]``: whether agent i hears critic j; what nobody hears is 0, not asked. None: all.
        """
        agents, groups = range(len(self.critics)), len(states)
        columns, own = [], []
        for j in agents:
            wanted = [
                i
                for i in range(groups)
                if listens is None or any(listens[k][j] for k in (agents if groups == 1 else [i]))
            ]
            about = [(j % groups, states[j % groups]), *((i, adjacent[i]) for adjacent in near for i in wanted)]
            mine, *others = self.ask(j, about, groups)
            own.append(mine)
            nothing, rest = torch.zeros_like(mine), iter(others)
            columns.append(
                torch.stack(
                    [torch.stack([next(rest) if i in wanted else nothing for i in range(groups)]) for _ in near]
                )
            )
        return torch.stack(own), torch.stack(columns, 2)


def _in_rows(entry: Any, rows: int) -> bool:
    return isinstance(entry, Tensor) and entry.dim() in (1, 2) and len(entry) == rows


def _like(entry: Any, model: Any) -> Any:
    """A tensor ``[B, A]`` cut or filled with zeros to the model's width; anything else as it is."""
    return fitted(entry, model.shape[-1]) if isinstance(entry, Tensor) and entry.dim() > 1 else entry
