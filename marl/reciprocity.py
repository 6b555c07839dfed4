"""Policy reciprocity for any code base: all that is here needs torch and nothing else of this project.

- ``reciprocate``: a pure function of tensors, when the values at adjacent states are already at hand;
- ``ReciprocalCritics``: a module around a plain list of critics, which asks them where they must be asked;
- ``Reciprocal``: a module that holds graph, adjacency space and kappa, for critics that only the host can ask;
- ``Reciprocity`` with ``Values``: the object that this project's own learners call, for populations.

Everything works on torch tensors. NumPy and JAX arrays are refused, and no tensor is moved between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from marl.modules.adjacency import AdjacencySpace, Exact, Gaussian, Mask, Nearest, Peer, Resample
from marl.modules.graph import complete, listeners, make_graph, nearest, validated
from marl.modules.guards import readable, refuse_array, require_tensor, same_device
from marl.modules.plain import Critics
from marl.modules.reciprocity import (
    Reciprocity,
    ReciprocityConfig,
    Values,
    blend,
    make_reciprocity,
    make_space,
    mix,
)
from marl.modules.sizes import fitted, make_sizes
from marl.streams import Streams
from marl.types import State, UserError

__all__ = [
    "AdjacencySpace",
    "Exact",
    "Gaussian",
    "LinearKappa",
    "Mask",
    "Nearest",
    "Peer",
    "Reciprocal",
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

    Raises ``UserError`` for other shapes, another device, a kappa outside [0, 1], or weights that are not
    row-stochastic. The numbers inside tensors are not looked at in a compiled graph or a vmap.
    """
    given: dict[str, Any] = {"own": own, "peers": peers}
    given |= {"kappa": kappa} if not isinstance(kappa, Real) else {}
    given |= {} if weights is None else {"weights": weights}
    for name, value in given.items():
        require_tensor(name, value)
    same_device(given)
    n = own.shape[0]
    if peers.shape != (n, *own.shape):
        raise UserError(f"peers: expected shape {[n, *own.shape]} for own {list(own.shape)}, got {list(peers.shape)}")
    if isinstance(kappa, Tensor):
        if kappa.shape not in ((), (1,), (n,)):
            raise UserError(f"kappa: expected a number or shape {[n]}, got shape {list(kappa.shape)}")
        fits = not readable(kappa) or bool(((kappa >= 0) & (kappa <= 1)).all())
    else:
        fits = 0 <= kappa <= 1
    if not fits:
        raise UserError(f"kappa: expected numbers from 0 to 1, got {kappa}")
    share = torch.as_tensor(kappa, dtype=own.dtype, device=own.device).view(1, -1)
    links = complete(n).unsqueeze(0) if weights is None else validated(weights)
    if links.shape != (1, n, n):
        raise UserError(f"weights: expected shape {[n, n]}, got {list(links.shape[-2:])}")
    return blend(own.unsqueeze(0), mix(links, peers.unsqueeze(0)), share, links).squeeze(0)


@dataclass(frozen=True)
class LinearKappa:
    """A kappa that goes from ``start`` to ``stop`` in equal steps over ``calls`` calls, and then stays."""

    start: float
    stop: float
    calls: int

    def __post_init__(self) -> None:
        for kappa in (self.start, self.stop):
            _checked_kappa(kappa)
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
        neighbours: k of the graphs ``nearest`` and ``random``.
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
        neighbours: int = 2,
        rho: Sequence[int] = (1,),
        count: int = 1,
        sigma: float = 0.02,
        metric: str = "euclidean",
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.agents, self.calls = agents, 0
        self._kappa = kappa if callable(kappa) else _checked_kappa(kappa)
        # a number that changes at each call would be compiled anew each time; importing the compiler takes a second
        self._advance = torch.compiler.disable(_advance) if callable(kappa) else None
        streams = Streams([torch.initial_seed()], "reciprocity") if generator is None else _Given(generator)
        if isinstance(adjacency, str):
            config: Any = {"adjacency": adjacency, "rho": tuple(rho), "count": count, "sigma": sigma, "metric": metric}
            adjacency = make_space(ReciprocityConfig(**config), streams, mask)
        if isinstance(graph, str):
            graph = make_graph(graph, agents, neighbours, streams)
        elif not callable(graph) and validated(graph).shape != (1, agents, agents):
            raise UserError(f"graph: expected shape {[agents, agents]} for {agents} critics, got {list(graph.shape)}")
        self.engine = Reciprocity([self.kappa], adjacency, graph)

    @property
    def kappa(self) -> float:
        """That of the next call; raises ``UserError`` where the schedule leaves [0, 1]."""
        return _checked_kappa(self._kappa(self.calls)) if callable(self._kappa) else self._kappa

    @property
    def off(self) -> bool:
        """The next call changes nothing, so that nothing need be asked: kappa is 0."""
        return self.kappa == 0

    @torch.no_grad()
    def adjacent(self, states: Tensor) -> Tensor:
        """S# for states ``[G, B, D]``, G = N or 1 joint: ``[S, G, B, D]``. Draws random numbers."""
        require_tensor("states", states)
        return torch.stack(list(self.engine.space(states.unsqueeze(0)))).squeeze(1)

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
        self.turn()
        own = own.detach()
        if self.engine.off:
            self.engine.last = None
            return own
        require_tensor("heard", heard)
        assert heard is not None
        same_device({"own": own, "heard": heard})
        n, levels = self.agents, len(self.engine.shares)
        if own.shape[0] != n or heard.shape not in [(levels, g, n, *own.shape[1:]) for g in (n, 1)]:
            expected = [levels, n, n, *own.shape[1:]]
            raise UserError(
                f"heard: expected shape {expected} for own {list(own.shape)} of {n} agents, got {list(heard.shape)}"
            )
        return self.combined(own, heard, self.engine.links(n, own))

    def combined(self, own: Tensor, heard: Tensor, weights: Tensor | None) -> Tensor:
        """Z* by this call's kappa; without weights ``heard`` is ``[S, N, B, *]``, of each agent's own critic."""
        shares = self.engine.shares
        average = heard[0] * shares[0]
        for share, values in zip(shares[1:], heard[1:], strict=True):
            average = average.add(values, alpha=share)
        average = average.unsqueeze(0)
        return self.engine.blended(
            own.unsqueeze(0), average if weights is None else mix(weights, average), weights
        ).squeeze(0)

    def turn(self) -> None:
        """One more call: set kappa to what the schedule says for it."""
        if self._advance is not None:
            self._advance(self)

    @property
    def gap(self) -> Tensor | None:
        """``[N]``: mean |Z* - Z| of the last call; None if it blended nothing, or ran inside a vmap."""
        gap = self.engine.gap
        return None if gap is None else gap.squeeze(0)

    def get_extra_state(self) -> State:
        return {"calls": self.calls, **self.engine.state_dict()}

    def set_extra_state(self, state: State) -> None:
        device = self.engine.kappa.device
        self.calls = state["calls"]
        self.engine.load_state_dict(state)
        self.engine.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reciprocal:
        super()._apply(fn, recurse)
        self.engine.to(fn(torch.empty(0, device=self.engine.kappa.device)).device)  # kappa and weights stay float64
        return self


class ReciprocalCritics(torch.nn.Module):
    """Blended bootstrap values from a plain list of critics, each a function ``critic(state, *rest) -> [B, ...]``.

    One call costs N critic calls for the own values, and for each adjacent state one for every pair (i, j) that the
    graph links (N if the state is shared, and with ``graph="self"`` or ``adjacency="peer"``). The critics stay the
    host's: they are no part of ``parameters()``, ``state_dict()`` or ``.to(device)``.

    Args:
        critics: N target critics. To use twins, let a critic return ``[B, 2]``, and take the minimum of the result.
        kappa, graph, adjacency, neighbours, rho, count, sigma, metric, generator: see ``Reciprocal``.
        widths: the agents' state sizes, where they differ. Critic j then reads the leading coordinates of agent i's
            state, cut or filled with zeros to its own size.
        masks: ``[N, D]`` bool, for states that come padded to one size: True where a coordinate of agent i's state is
            real. Critic j then reads the coordinates that are real for it, and zeros elsewhere.
        projections: N matrices Pi_i ``[D_i, S]``, o_i = Pi_i s. Critic j then reads Pi_j Pi_i^T o_i.
    """

    def __init__(
        self,
        critics: Sequence[Callable[..., Tensor]],
        kappa: Kappa = 0.5,
        graph: Links = "complete",
        adjacency: str | AdjacencySpace = "resample",
        *,
        neighbours: int = 2,
        rho: Sequence[int] = (1,),
        count: int = 1,
        sigma: float = 0.02,
        metric: str = "euclidean",
        widths: Sequence[int] | None = None,
        masks: Tensor | None = None,
        projections: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.critics = list(critics)
        self.sizes = make_sizes(len(self.critics), widths, masks, projections)
        options: Any = {"neighbours": neighbours, "rho": rho, "count": count, "sigma": sigma, "metric": metric}
        self.reciprocal = Reciprocal(
            len(self.critics), kappa, graph, adjacency, mask=self.sizes.mask, generator=generator, **options
        )

    @torch.no_grad()
    def forward(self, states: Tensor | Sequence[Tensor], *rest: Tensor | Sequence[Any]) -> Tensor:
        """Z* of all agents, ``[N, B, ...]``, without gradient.

        Args:
            states: one ``[B, D_i]`` for each agent (a list, or a tensor ``[N, B, D]``); or one joint ``[1, B, D]``.
            rest: each further argument of the critics, one entry for each state: critic j at agent i's state receives
                entry i. An entry that is a tensor ``[B, A]`` is cut or filled with zeros to the size that entry j has.

        Raises ``UserError`` if the number of states or entries does not fit the critics, if sizes, batches or devices
        differ, and if critics answer in different shapes.
        """
        refuse_array("states", states)
        states = list(states)
        self._check(states, rest)
        self.reciprocal.turn()
        width = max(state.shape[-1] for state in states)
        stacked = torch.stack([fitted(state, width) for state in states])
        engine, critics = self.reciprocal.engine, Critics(self.critics, self.sizes, rest)
        if engine.off:
            engine.last = None
            return critics.own(stacked)
        weights = engine.links(len(self.critics), stacked)
        own = critics.own(stacked)
        if engine.space.views:  # each at its own state of the moment, which is what it has just been asked
            return self.reciprocal.combined(own, own[None, None], weights)
        near = [states.squeeze(0) for states in engine.space(stacked.unsqueeze(0))]
        if engine.graph.identity:
            return self.reciprocal.combined(own, torch.stack([critics.own(states) for states in near]), None)
        return self.reciprocal.combined(own, critics.heard(near, listeners(engine.graph, weights)), weights)

    def _check(self, states: list[Tensor], rest: Sequence[Tensor | Sequence[Any]]) -> None:
        """Raise ``UserError`` for what does not fit the critics or each other."""
        n = len(self.critics)
        tensors: dict[str, Tensor] = {}
        for what, given in (("states", states), *((f"argument {k + 1}", entries) for k, entries in enumerate(rest))):
            refuse_array(what, given)
            if len(given) not in (1, n) or len(given) != len(states):
                raise UserError(f"{what}: expected one entry for each of {n} critics or one for all, got {len(given)}")
            for i, entry in enumerate(given):
                refuse_array(f"{what}[{i}]", entry)
                if isinstance(entry, Tensor):
                    tensors[f"{what}[{i}]"] = entry
        for i, state in enumerate(states):
            require_tensor(f"states[{i}]", state)
            if state.dim() < 2 or (state.dim() > 2 and not isinstance(self.reciprocal.engine.space, Exact)):
                raise UserError(
                    f"states[{i}]: expected shape [B, D] (any [B, ..., D] with exact or peer), got {list(state.shape)}"
                )
            if len(state) != len(states[0]):
                raise UserError(f"states[{i}]: expected {len(states[0])} rows as in states[0], got {len(state)}")
        same_device(tensors)
        self.sizes.check(states)

    @property
    def gap(self) -> Tensor | None:
        """``[N]``: mean |Z* - Z| of the last call; None if it blended nothing, or ran inside a vmap."""
        return self.reciprocal.gap


class _Given(Streams):
    """The caller's generator as the stream of a population of one."""

    def __init__(self, generator: torch.Generator) -> None:
        if generator.device.type != "cpu":
            raise UserError(f"generator: expected one on the cpu, got one on {generator.device}")
        self.generators = [generator]


def _advance(reciprocal: Reciprocal) -> None:
    reciprocal.engine.set_kappas([reciprocal.kappa])
    reciprocal.calls += 1


def _checked_kappa(kappa: Any) -> float:
    if not isinstance(kappa, Real) or not 0 <= float(kappa) <= 1:
        raise UserError(f"kappa: expected a number from 0 to 1, got {kappa!r}")
    return float(kappa)
