"""Policy reciprocity for any code base: all that is here needs torch and nothing else of this project.

- ``reciprocate``: a pure function of tensors, when the values at adjacent states are already at hand;
- ``ReciprocalCritics``: a wrapper around a plain list of critics;
- ``Reciprocity`` with ``Values``: the object that this project's own learners call, for stacked critics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace, Exact, Gaussian, Mask, Nearest, Peer, Resample
from marl.modules.graph import complete, make_graph, nearest, validated
from marl.modules.reciprocity import (
    Reciprocity,
    ReciprocityConfig,
    Values,
    blend,
    make_reciprocity,
    make_space,
    mix,
)
from marl.streams import Streams
from marl.types import State, UserError

__all__ = [
    "AdjacencySpace",
    "Exact",
    "Gaussian",
    "Mask",
    "Nearest",
    "Peer",
    "ReciprocalCritics",
    "Reciprocity",
    "ReciprocityConfig",
    "Resample",
    "UserError",
    "Values",
    "complete",
    "make_reciprocity",
    "nearest",
    "reciprocate",
]


@torch.no_grad()
def reciprocate(own: Tensor, peers: Tensor, kappa: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """Z*_i = (1 - kappa) own_i + kappa * sum_j W_ij peers_ij, without gradient.

    Args:
        own: ``[N, ...]``, critic i at state s of agent i.
        peers: ``[N, N, ...]``, critic j at a state adjacent to agent i's (or the mean over several).
        kappa: in [0, 1]; a number, or a tensor ``[N]`` where agents differ.
        weights: ``[N, N]``, rows sum to one or are zero; None: all the others alike (of one agent alone: itself).

    Raises ``UserError`` for other shapes, a kappa outside [0, 1], or weights that are not row-stochastic.
    """
    n = own.shape[0]
    if peers.shape != (n, *own.shape):
        raise UserError(f"peers: expected shape {[n, *own.shape]} for own {list(own.shape)}, got {list(peers.shape)}")
    share = torch.as_tensor(kappa, dtype=own.dtype, device=own.device).view(1, -1)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise UserError(f"kappa: expected numbers from 0 to 1, got {kappa}")
    links = validated(complete(n) if weights is None else weights)
    if links.shape != (1, n, n):
        raise UserError(f"weights: expected shape {[n, n]}, got {list(links.shape[-2:])}")
    return blend(own.unsqueeze(0), mix(links, peers.unsqueeze(0)), share, links).squeeze(0)


class ReciprocalCritics:
    """Blended bootstrap values from a plain list of critics, each a function ``critic(state, *rest) -> [B, ...]``.

    One call costs N critic calls for the own values, and for each adjacent state N x N (N x 1 if the state is shared,
    N with ``graph="self"`` or ``adjacency="peer"``).

    Args:
        critics: N target critics. To use twins, let a critic return ``[B, 2]``, and take the minimum of the result.
        kappa: weight of the neighbours, 0 (off) to 1.
        graph: ``complete``, ``ring``, ``nearest``, ``random``, ``self``; or weights ``[N, N]``; or a function that
            returns such weights at each call.
        adjacency: ``resample``, ``mask``, ``gaussian``, ``knn``, ``peer``, ``exact``; or an ``AdjacencySpace``.
        neighbours: k of the graphs ``nearest`` and ``random``.
        rho, count, sigma, metric: see ``ReciprocityConfig``.
        widths: the agents' state sizes, where they differ. Critic j then reads the leading coordinates of agent i's
            state, cut or filled with zeros to its own size.
        generator: the source of random numbers, on the CPU. None: one of its own, seeded by ``torch.initial_seed()``.
            Torch's global generator is never used.
    """

    def __init__(
        self,
        critics: Sequence[Callable[..., Tensor]],
        kappa: float = 0.5,
        graph: str | Tensor | Callable[[], Tensor] = "complete",
        adjacency: str | AdjacencySpace = "resample",
        *,
        neighbours: int = 2,
        rho: Sequence[int] = (1,),
        count: int = 1,
        sigma: float = 0.02,
        metric: str = "euclidean",
        widths: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.critics = list(critics)
        if widths is not None and len(widths) != len(self.critics):
            raise UserError(f"widths: expected one for each of {len(self.critics)} critics, got {len(widths)}")
        self.widths = widths
        streams = Streams([torch.initial_seed()], "reciprocity") if generator is None else _Given(generator)
        if isinstance(adjacency, str):
            mask = None if widths is None else torch.arange(max(widths)) < torch.tensor(list(widths)).unsqueeze(-1)
            config: Any = {"adjacency": adjacency, "rho": tuple(rho), "count": count, "sigma": sigma, "metric": metric}
            adjacency = make_space(ReciprocityConfig(**config), streams, mask)
        links = make_graph(graph, len(self.critics), neighbours, streams) if isinstance(graph, str) else graph
        self.reciprocity = Reciprocity([kappa], adjacency, links)

    @torch.no_grad()
    def __call__(self, states: Tensor | Sequence[Tensor], *rest: Tensor | Sequence[Any]) -> Tensor:
        """Z* of all agents, ``[N, B, ...]``, without gradient.

        Args:
            states: one ``[B, D_i]`` for each agent (a list, or a tensor ``[N, B, D]``); or one joint ``[1, B, D]``.
            rest: each further argument of the critics, one entry for each state: critic j at agent i's state receives
                entry i. An entry that is a tensor ``[B, A]`` is cut or filled with zeros to the size that entry j has.

        Raises ``UserError`` if the number of states or entries does not fit the critics.
        """
        n = len(self.critics)
        for what, given in (("states", states), *((f"argument {k + 1}", entries) for k, entries in enumerate(rest))):
            if len(given) not in (1, n) or len(given) != len(states):
                raise UserError(f"{what}: expected one entry for each of {n} critics or one for all, got {len(given)}")
        widths = [state.shape[-1] for state in states]
        if widths != list(self.widths or widths[:1] * len(widths)):
            raise UserError(f"states: sizes {widths} arrived, but widths is {self.widths}")
        stacked = torch.stack([_fit(state, max(widths)) for state in states]).unsqueeze(0)
        return self.reciprocity(_Asked(self.critics, widths, rest), stacked).squeeze(0)

    @property
    def gap(self) -> Tensor | None:
        """``[N]``: mean |Z* - Z| of the last call; None if it blended nothing."""
        gap = self.reciprocity.gap
        return None if gap is None else gap.squeeze(0)

    def state_dict(self) -> State:
        return self.reciprocity.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.reciprocity.load_state_dict(state)


class _Given(Streams):
    """The caller's generator as the stream of a population of one."""

    def __init__(self, generator: torch.Generator) -> None:
        if generator.device.type != "cpu":
            raise UserError(f"generator: expected one on the cpu, got one on {generator.device}")
        self.generators = [generator]


class _Asked:
    """``Values`` of a list of critics, for one batch and a population of one."""

    def __init__(
        self, critics: list[Callable[..., Tensor]], widths: list[int], rest: Sequence[Tensor | Sequence[Any]]
    ) -> None:
        self.critics, self.widths, self.rest = critics, widths, rest

    def ask(self, j: int, i: int, states: Tensor) -> Tensor:
        """Critic j at state i of ``[1, G, B, D]``."""
        home = j % len(self.widths)
        return self.critics[j](
            _fit(states[0, i], self.widths[home]), *(_fit_like(entries[i], entries[home]) for entries in self.rest)
        )

    def own(self, states: Tensor) -> Tensor:
        count = states.shape[1]
        return torch.stack([self.ask(j, j % count, states) for j in range(len(self.critics))]).unsqueeze(0)

    def peers(self, states: Tensor) -> Tensor:
        agents = range(len(self.critics))
        rows = [torch.stack([self.ask(j, i, states) for j in agents]) for i in range(states.shape[1])]
        return torch.stack(rows).unsqueeze(0)

    def views(self, states: Tensor) -> Tensor:
        return self.own(states).unsqueeze(1)


def _fit(tensor: Tensor, width: int) -> Tensor:
    """The last dimension cut or filled with zeros to ``width``."""
    extra = width - tensor.shape[-1]
    return tensor if extra == 0 else torch.nn.functional.pad(tensor, (0, extra))


def _fit_like(entry: Any, model: Any) -> Any:
    return _fit(entry, model.shape[-1]) if isinstance(entry, Tensor) and entry.dim() > 1 else entry
