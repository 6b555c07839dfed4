"""Reciprocity for a host whose critics are asked by itself: graph, adjacency space and kappa, which may change.

``marl.reciprocity`` is where other people's code finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace, Exact, Perturbed
from marl.modules.graph import make_graph, validated
from marl.modules.guards import (
    batched,
    checked_kappa,
    outside_the_graph,
    require_floating,
    require_tensor,
    same_device,
)
from marl.modules.plain import check_state
from marl.modules.reciprocity import Reciprocity, ReciprocityConfig, blend, make_space, mix
from marl.streams import Streams
from marl.types import State, UserError


@dataclass(frozen=True)
class LinearKappa:
    """A kappa that goes from ``start`` to ``stop`` in equal steps over ``calls`` calls, and then stays."""

    start: float
    stop: float
    calls: int

    def __post_init__(self) -> None:
        for kappa in (self.start, self.stop):
            checked_kappa(kappa)
        if self.calls < 1:
            raise UserError(f"calls: expected 1 or more, got {self.calls}")

    def __call__(self, calls: int) -> float:
        """Kappa after so many calls."""
        if calls >= self.calls:
            return self.stop
        return self.start + (self.stop - self.start) * calls / self.calls


Kappa: TypeAlias = float | Callable[[int], float]
Links: TypeAlias = str | Tensor | Callable[[], Tensor]


class Reciprocal(torch.nn.Module):
    """Graph, adjacency space and kappa, for a host that asks its critics itself:

        near = reciprocal.adjacent(next_states)              # [S, N, B, D]
        value = reciprocal(own, heard)                       # heard[s, i, j]: critic j at near[s, i]

    What changes from call to call (random numbers, moments, the count of calls, a graph given as a tensor) is in
    ``state_dict``. ``.to(device)`` moves a graph that was given as a tensor; random numbers are drawn on the CPU.

    Args:
        agents: N.
        kappa: weight of the neighbours, 0 (off) to 1; or a function of the number of calls so far, as ``LinearKappa``.
        graph: ``complete``, ``ring``, ``nearest``, ``random``, ``self``; or weights ``[N, N]``; or a function that
            returns such weights at each call.
        adjacency: ``resample``, ``mask``, ``gaussian``, ``knn``, ``peer``, ``exact``; or an ``AdjacencySpace``.
        neighbours: k of the graphs ``nearest`` and ``random``; None: 2, or 1 of two agents.
        rho, count, sigma, metric: see ``ReciprocityConfig``.
        mask: ``[N or 1, D]`` bool, False where a coordinate is padding, which never changes. None: all are real.
        generator: the source of random numbers, on the CPU. None: one of its own, seeded by ``torch.initial_seed()``.
            Torch's global generator is never used.
    """

    def __init__(
        self,
        agents: int,
        kappa: Kappa = 0.5,
        graph: Links = "complete",
        adjacency: str | AdjacencySpace = "resample",
        *,
        neighbours: int | None = None,
        rho: Sequence[int] = (1,),
        count: int = 1,
        sigma: float = 0.02,
        metric: str = "euclidean",
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.agents, self.calls = agents, 0
        self._kappa = kappa if callable(kappa) else checked_kappa(kappa)
        streams = Streams([torch.initial_seed()], "reciprocity") if generator is None else _Given(generator)
        if isinstance(adjacency, str):
            levels: Any = tuple(rho) if isinstance(rho, Iterable) else rho
            config: Any = {"adjacency": adjacency, "rho": levels, "count": count, "sigma": sigma, "metric": metric}
            adjacency = make_space(ReciprocityConfig(**config), streams, mask)
        elif not isinstance(adjacency, AdjacencySpace):
            raise UserError(f"adjacency: expected a name or an AdjacencySpace, got {type(adjacency).__name__}")
        elif not getattr(adjacency, "levels", ()):
            raise UserError("adjacency: expected levels, one for each state that the space yields, got none")
        elif mask is not None and not isinstance(adjacency, Exact):
            adjacency = _Unpadded(adjacency, mask)
        if isinstance(graph, str):
            links = Streams([torch.initial_seed()], "reciprocity/graph") if generator is None else streams
            graph = make_graph(graph, agents, min(2, agents - 1) if neighbours is None else neighbours, links)
        elif not callable(graph) and validated(graph).shape != (1, agents, agents):
            raise UserError(f"graph: expected shape {[agents, agents]} for {agents} critics, got {list(graph.shape)}")
        self.engine = Reciprocity([self.kappa], adjacency, graph)

    @property
    def kappa(self) -> float:
        """That of the next call; raises ``UserError`` where the schedule leaves [0, 1]."""
        return checked_kappa(self._kappa(self.calls)) if callable(self._kappa) else self._kappa

    @kappa.setter
    def kappa(self, kappa: Kappa) -> None:
        self._kappa = kappa if callable(kappa) else checked_kappa(kappa)
        self.engine.set_kappas([self.kappa])

    @property
    def off(self) -> bool:
        """The next call changes nothing, so that nothing need be asked: kappa is 0."""
        return self.kappa == 0

    @torch.no_grad()
    def adjacent(self, states: Tensor) -> Tensor:
        """S# for states ``[G, B, D]``, G = N or 1 joint: ``[S, G, B, D]``. Draws random numbers.

        Raises ``UserError`` for other shapes.
        """
        require_tensor("states", states)
        if states.dim() == 0 or len(states) not in (self.agents, 1):
            raise UserError(f"states: expected shape [{self.agents}, B, D] or [1, B, D], got {list(states.shape)}")
        if states.dim() != 3:  # [G, B, D] fits every space
            check_state("states[0]", states[0], self.engine.space)
        near = self.engine.near(states.unsqueeze(0))
        fresh = isinstance(self.engine.space, Perturbed)  # others may hand out the host's own states
        return near[0] if fresh and len(near) == 1 else torch.cat(near)

    @torch.no_grad()
    def forward(self, own: Tensor, heard: Tensor | None = None) -> Tensor:
        """Z* of all agents, ``[N, B, *]``, without gradient.

        Args:
            own: ``[N, B, *]``, critic i at agent i's true state.
            heard: ``[S, N_i, N_j, B, *]``, critic j at agent i's adjacent states; N_i may be 1 where all see the same.
                None only while it is off.

        Raises ``UserError`` for other shapes and for tensors on different devices.
        """
        require_tensor("own", own)
        own = own.detach()
        if not self.turn():
            return own
        require_tensor("heard", heard)
        assert heard is not None
        same_device({"own": own, "heard": heard})
        require_floating("own", own)
        require_floating("heard", heard)
        n, levels = self.agents, len(self.engine.shares)
        if own.shape[0] != n or heard.shape not in [(levels, g, n, *own.shape[1:]) for g in (n, 1)]:
            expected = [levels, n, n, *own.shape[1:]]
            raise UserError(
                f"heard: expected shape {expected} for own {list(own.shape)} of {n} agents, got {list(heard.shape)}"
            )
        return self.combined(own, heard.detach(), self.engine.links(n, own))

    def combined(self, own: Tensor, heard: Tensor | Sequence[Tensor], weights: Tensor | None) -> Tensor:
        """``mixed``, noted for ``gap`` (inside a vmap there is nothing that could be kept)."""
        value = self.mixed(own, heard, weights)
        self.engine.last = None if batched(value) else (own, value)
        return value

    def mixed(self, own: Tensor, heard: Tensor | Sequence[Tensor], weights: Tensor | None) -> Tensor:
        """Z* by this call's kappa, from ``own`` ``[N, B, *]`` and S answers ``[N_i, N_j, B, *]``.

        Without weights the answers are those of the one whom each agent hears, each in the shape of ``own``, any.
        """
        engine = self.engine
        shares = engine.shares
        average = heard[0]
        if not len(shares) == len(heard) == 1:
            average = average * shares[0]
            for share, values in zip(shares[1:], heard[1:], strict=True):
                average = average.add(values, alpha=share)
        if weights is None:
            kappa = engine.kappa.to(own).view(()) if callable(self._kappa) else self._kappa
            average = average if average.dtype == own.dtype else average.to(own.dtype)
            return torch.lerp(own, average, kappa)
        listens = None if engine.all_listen else weights
        return blend(own.unsqueeze(0), mix(weights, average.unsqueeze(0)), engine.kappa, listens).squeeze(0)

    def turn(self) -> bool:
        """One more call, with the kappa that the schedule says for it; whether it blends anything."""
        engine = self.engine
        engine.last = None
        if callable(self._kappa):
            outside_the_graph(_advance)(self)
        return not engine.off

    @property
    def gap(self) -> Tensor | None:
        """``[N]``: mean |Z* - Z| of the last call; None if it blended nothing, or ran inside a vmap.

        Wrong if the host has written into its result since.
        """
        if self.engine.last is None:
            return None
        own, value = self.engine.last
        return (value - own).abs().flatten(1).mean(-1)

    def get_extra_state(self) -> State:
        return {"calls": self.calls, "agents": self.agents, **self.engine.state_dict()}

    def set_extra_state(self, state: State) -> None:
        device = self.engine.kappa.device
        if state.get("agents", self.agents) != self.agents:
            raise UserError(f"expected a state saved for {self.agents} critics, got one for {state['agents']}")
        self.engine.load_state_dict(state)
        self.calls = state["calls"]
        self.engine.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reciprocal:
        super()._apply(fn, recurse)
        self.engine.to(fn(torch.empty(0, device=self.engine.kappa.device)).device)  # kappa and weights stay float64
        return self


class _Unpadded(AdjacencySpace):
    """A user's space, which knows of no padding: what is padding in a state is put back.

    Args:
        mask: ``[G, D]`` bool, True where a coordinate is real.
    """

    def __init__(self, space: AdjacencySpace, mask: Tensor) -> None:
        self.space, self.mask = space, mask
        self.levels, self.views = space.levels, space.views

    def __call__(self, states: Tensor, real: Tensor | None = None) -> Iterator[Tensor]:
        mask = self.mask.to(states.device).unsqueeze(-2)
        return (torch.where(mask, near, states) for near in self.space(states, real))

    def state_dict(self) -> State:
        return self.space.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.space.load_state_dict(state)


class _Given(Streams):
    """The caller's generator as the stream of a population of one."""

    shared = True

    def __init__(self, generator: torch.Generator) -> None:
        if not isinstance(generator, torch.Generator):
            raise UserError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
        if generator.device.type != "cpu":
            raise UserError(f"generator: expected one on the cpu, got one on {generator.device}")
        self.generators = [generator]


def _advance(reciprocal: Reciprocal) -> None:
    """In no graph: a number that changes at each call would be compiled anew each time."""
    reciprocal.engine.set_kappas([reciprocal.kappa])
    reciprocal.calls += 1
