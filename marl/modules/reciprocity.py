"""Deep policy reciprocity: an agent's bootstrap value, blended with its neighbours' critics at adjacent states.

    Z*_i(s) = (1 - kappa) Z_i(s) + kappa * sum_j W_ij * mean_{s# in S#(s)} Z_j(s#)

This is equation (12) of the policy reciprocity paper with a normalised sum: as printed it is no contraction. Three
parts, each replaceable: the adjacency space (which s#), the graph (which j), the blend (how much).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, Protocol

import torch
from torch import Tensor

from marl.config import option, suggestion
from marl.modules.adjacency import AdjacencySpace, Exact, Gaussian, Mask, Nearest, Peer, Resample, level_weights
from marl.modules.graph import Changing, Fixed, Graph, make_graph
from marl.modules.guards import batched, checked_kappa, full_precision, same_device
from marl.streams import Streams
from marl.types import State, UserError


@dataclass(frozen=True)
class ReciprocityConfig:
    """How values are shared among agents. The paper uses kappa .3 on Ant, .5 elsewhere."""

    kappa: float = option(0.0, "Weight of the neighbours' values in the target, 0 (off) to 1.", sweep=True, most=1)
    graph: Literal["complete", "ring", "nearest", "random", "self"] = option(
        "complete", "Who listens to whom; self: only to its own critic (one agent alone always does)."
    )
    neighbours: int = option(2, "How many others each agent listens to in the graphs nearest and random.")
    adjacency: Literal["resample", "mask", "gaussian", "knn", "peer", "exact"] = option(
        "resample", "How adjacent states are made from a batch of states."
    )
    rho: tuple[int, ...] = option(
        (1,), "Adjacency levels of resample, mask and gaussian: how many coordinates change (the state's size: all)."
    )
    count: int = option(1, "Adjacent states for each level; for knn, how many nearest rows.")
    sigma: float = option(0.02, "Noise of gaussian, in units of each coordinate's running standard deviation.")
    metric: Literal["euclidean", "cosine"] = option("euclidean", "Distance between states for knn.")


class Values(Protocol):
    """What a learner hands over: its target critics at given states, the actions being those at the true states.

    States are ``[P, G, B, D]``: G = N for critics of agents' own states, 1 for critics of a joint state. ``*`` stands
    for any trailing dimensions, twins or actions.
    """

    def own(self, states: Tensor) -> Tensor:
        """``[P, N, B, *]``: critic i at agent i's state."""
        ...

    def peers(self, states: Tensor) -> Tensor:
        """``[P, N_i, N_j, B, *]``: critic j at agent i's state; N_i may be 1 where it is the same for all i.

        What stands at i = j must be finite but is not used: ``own`` answers that.
        """
        ...

    def views(self, states: Tensor) -> Tensor:
        """``[P, N_i, N_j, B, *]``: critic j at its own view of the same moment; N_i may be 1."""
        ...


def mix(weights: Tensor, peers: Tensor) -> Tensor:
    """sum_j W_ij Z_ij: ``[P or 1, N, N]`` and ``[P, N or 1, N, *]`` -> ``[P, N, *]``."""
    with full_precision(peers):
        return torch.einsum("pij,pij...->pi...", weights.to(peers), peers)


def blend(own: Tensor, others: Tensor, kappa: Tensor, weights: Tensor | None) -> Tensor:
    """(1 - kappa) own + kappa others; where kappa is 0 or a row of ``weights`` has no neighbours, own bit for bit.

    Args:
        own, others: ``[P, N, *]``.
        kappa: ``[P or 1, N or 1]``.
        weights: ``[P or 1, N, N]``; None: every kappa is above 0 and every agent has neighbours.
    """
    shape = (-1, *[1] * (own.dim() - 2))
    value = torch.lerp(own, others.to(own.dtype), kappa.to(own).view(*kappa.shape[:1], *shape))
    if weights is None:
        return value
    active = (kappa.to(own.device) > 0) & (weights.to(own.device) != 0).any(-1)
    return torch.where(active.view(*active.shape[:1], *shape), value, own)


class Reciprocity:
    """The object a learner calls where it computes a bootstrap value.

    Args:
        kappas: one for each member, in [0, 1].
        space: the adjacency space.
        graph: a ``Graph``; or weights ``[N, N]`` (``[P, N, N]`` where members differ); or a function that returns such
            weights anew at each call. Rows must sum to one, or be all zero: no neighbours.

    Attributes:
        draws: whom an agent hears, or where, may be drawn anew at each call.

    Raises ``UserError`` for a kappa outside [0, 1] and for weights that are not row-stochastic.
    """

    def __init__(
        self, kappas: Sequence[float], space: AdjacencySpace, graph: Graph | Tensor | Callable[[], Tensor]
    ) -> None:
        self.set_kappas(kappas)
        self.space = space
        self.shares = level_weights(space.levels)
        self.set_graph(graph)
        self.last: tuple[Tensor, Tensor] | None = None  # Z and Z*; without the P where ``Reciprocal`` blends

    def set_kappas(self, kappas: Sequence[float]) -> None:
        """One for each member from now on; raises ``UserError`` for one outside [0, 1]."""
        for kappa in kappas:
            checked_kappa(kappa, "reciprocity.kappa")
        self.kappa = torch.tensor(list(kappas), dtype=torch.float64).unsqueeze(-1)
        self.off, self.all_on = not any(kappas), all(kappas)

    def set_graph(self, graph: Graph | Tensor | Callable[[], Tensor]) -> None:
        """Who listens to whom from now on. Weights given as a tensor are part of ``state_dict``."""
        self.foreign = not isinstance(graph, Graph)
        if isinstance(graph, Tensor):
            graph = Fixed(graph)
        self.graph: Graph = graph if isinstance(graph, Graph) else Changing(graph)
        self.draws = not (isinstance(self.space, Exact | Nearest) and isinstance(self.graph, Fixed))

    def to(self, device: torch.device) -> None:
        """Keep kappa and fixed weights there; random numbers are drawn on the CPU all the same, alike everywhere."""
        self.kappa = self.kappa.to(device)
        if isinstance(self.graph, Fixed):
            self.graph.weights = self.graph.weights.to(device)

    @torch.no_grad()
    def __call__(self, values: Values, states: Tensor, real: Tensor | None = None) -> Tensor:
        """Z* at states ``[P, G, B, D]`` -> ``[P, N, B, *]``, without gradient; for ``real`` see ``AdjacencySpace``.

        With kappa = 0 for all members this is ``values.own(states)`` and no random number is drawn. Raises
        ``UserError`` if the batch is too small for the adjacency space or the graph has another number of agents.
        """
        own = values.own(states)
        self.last = None
        if self.off:
            return own
        weights = self.links(own.shape[1], own, len(own))
        others = self._average(lambda adjacent: self._heard(values, adjacent, weights), states, real)
        return self.blended(own, others, weights)

    def links(self, agents: int, values: Tensor, members: int = 1) -> Tensor:
        """The graph's weights at this call, ``[P or 1, N, N]``.

        Raises ``UserError`` for another number of agents or members, and for a user's weights on another device.
        """
        weights = self.graph()
        if weights.shape[-1] != agents:
            raise UserError(f"graph: weights for {weights.shape[-1]} agents arrived, but there are {agents} critics")
        if len(weights) not in (1, members):
            expected = [agents, agents] if members == 1 else [members, agents, agents]
            raise UserError(f"graph: expected weights of shape {expected}, got {list(weights.shape)}")
        if self.foreign:
            same_device({"the batch": values, "graph": weights})
        return weights

    def near(self, states: Tensor, space: AdjacencySpace | None = None) -> list[Tensor]:
        """S# of states ``[P, G, B, D]``; raises ``UserError`` unless a user's space yields as many as it has levels.

        Args:
            space: one critic's own, ``self.space.apart()``, for states ``[B, D]``; None: that of all.
        """
        near = list(self.space(states)) if space is None else space.around(states)
        if len(near) != len(self.shares):
            raise UserError(
                f"adjacency: expected {len(self.shares)} adjacent states, one for each of levels, got {len(near)}"
            )
        return near

    def blended(self, own: Tensor, others: Tensor, weights: Tensor | None) -> Tensor:
        """``blend`` with the kappas, noted for ``gap`` (inside a vmap there is nothing that could be kept)."""
        value = blend(own, others, self.kappa, None if self.all_listen else weights)
        self.last = None if batched(value) else (own, value)
        return value

    @property
    def all_listen(self) -> bool:
        """It is known that every kappa is above 0 and that every agent has neighbours."""
        return self.all_on and isinstance(self.graph, Fixed) and self.graph.everybody

    def _heard(self, values: Values, states: Tensor, weights: Tensor) -> Tensor:
        """sum_j W_ij Z_j at ``states``: ``[P, N, *]``; the part of one's own critic, W_ii, is asked of ``own``."""
        if self.graph.identity:
            return values.own(states)
        own_share = weights.diagonal(dim1=-2, dim2=-1)
        heard = mix(weights - own_share.diag_embed(), (values.views if self.space.views else values.peers)(states))
        if self.graph.hears_itself:
            own = values.own(states)
            heard = heard + own * own_share.to(own).view(*own_share.shape, *[1] * (own.dim() - 2))
        return heard

    def _average(self, ask: Callable[[Tensor], Tensor], states: Tensor, real: Tensor | None) -> Tensor:
        """The weighted mean of what the critics answer over S#."""
        near = self.space(states, real)
        total = ask(next(near)) * self.shares[0]
        for share, state in zip(self.shares[1:], near, strict=True):
            total = total.add(ask(state), alpha=share)
        return total

    @property
    def gap(self) -> Tensor | None:
        """``[P, N]``: mean |Z* - Z| of the last call over batch and trailing dimensions, computed when asked for.

        None if the last call left all values as they were. Wrong if its result was changed in place since.
        """
        return None if self.last is None else _distance(*self.last).mean(-1)

    def metrics(self, real: Tensor | None = None) -> dict[str, Tensor]:
        """The gap by its name in the log; empty if there is none.

        Args:
            real: ``[P, N or 1, B]`` bool: the rows of the batch that count; None: all.
        """
        if self.last is None:
            return {}
        gap = _distance(*self.last)
        if real is None:
            return {"value/target_gap": gap.mean(-1)}
        return {"value/target_gap": gap.masked_fill(~real, 0.0).sum(-1) / real.sum(-1).clamp(min=1)}

    @property
    def named(self) -> bool:
        """The weights follow from the graph's name, so that there is nothing to save."""
        return isinstance(self.graph, Fixed) and not self.foreign

    def state_dict(self) -> State:
        return {"space": self.space.state_dict(), "graph": {} if self.named else self.graph.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Raises ``UserError``, before anything changes, for the state of another adjacency space or graph."""
        space, graph = state["space"], state["graph"]
        _same_parts("adjacency", self.space.state_dict(), space)
        if isinstance(self.graph, Fixed) and "weights" in graph:
            found, n = graph["weights"], self.graph.weights.shape[-1]
            if found.shape[-1] != n:
                raise UserError(f"graph: expected saved weights for {n} agents, got some for {found.shape[-1]}")
            if self.named and torch.equal(found.cpu(), self.graph.weights.cpu()):
                graph = {}  # they were once saved for every graph
        _same_parts("graph", {} if self.named else self.graph.state_dict(), graph)
        self.space.load_state_dict(space)
        if not self.named:
            self.graph.load_state_dict(graph)


def _distance(own: Tensor, value: Tensor) -> Tensor:
    """|Z* - Z| ``[P, N, B]``, the mean over trailing dimensions."""
    gap = (value - own).abs()
    return gap.flatten(3).mean(-1) if gap.dim() > 3 else gap


def make_space(config: ReciprocityConfig, streams: Streams, mask: Tensor | None = None) -> AdjacencySpace:
    """The adjacency space that ``config`` names; raises ``UserError`` for settings out of range."""
    if not isinstance(config.rho, Iterable) or not all(isinstance(level, Integral) for level in config.rho):
        raise UserError(f"reciprocity.rho: expected a sequence of whole numbers, as (1, 2), got {config.rho!r}")
    if not config.rho or min(config.rho) < 1:
        raise UserError(
            f"reciprocity.rho: expected levels of 1 or more, got {','.join(map(str, config.rho)) or 'none'}"
        )
    if not isinstance(config.count, Integral) or config.count < 1:
        raise UserError(f"reciprocity.count: expected a whole number of 1 or more, got {config.count!r}")
    if not isinstance(config.sigma, Real) or not 0 <= config.sigma < math.inf:
        raise UserError(f"reciprocity.sigma: expected a finite number of 0 or more, got {config.sigma!r}")
    makers: dict[str, Callable[[], AdjacencySpace]] = {
        "resample": lambda: Resample(streams, config.rho, config.count, mask),
        "mask": lambda: Mask(streams, config.rho, config.count, mask),
        "gaussian": lambda: Gaussian(streams, config.rho, config.count, config.sigma, mask),
        "knn": lambda: Nearest(config.count, config.metric, mask),
        "peer": Peer,
        "exact": Exact,
    }
    if config.adjacency not in makers:
        raise UserError(
            f"reciprocity.adjacency: {config.adjacency!r} is not a choice{suggestion(config.adjacency, makers)}"
        )
    return makers[config.adjacency]()


def make_reciprocity(
    config: ReciprocityConfig,
    kappas: Sequence[float],
    seeds: Sequence[int],
    n_agents: int,
    mask: Tensor | None = None,
) -> Reciprocity:
    """Reciprocity among ``n_agents`` for ``len(seeds)`` members.

    Args:
        kappas: one for each member; takes the place of ``config.kappa``.
        seeds: one for each member.
        mask: ``[G, D]`` bool, True where a coordinate of the state is real; None: all are.
    """
    space = make_space(config, Streams(seeds, "reciprocity/adjacency"), mask)
    graph = make_graph(config.graph, n_agents, config.neighbours, Streams(seeds, "reciprocity/graph"))
    return Reciprocity(kappas, space, graph)


def _same_parts(what: str, own: State, saved: State) -> None:
    if set(own) != set(saved):
        expected, found = (" and ".join(state) or "nothing" for state in (own, saved))
        raise UserError(
            f"reciprocity.{what}: expected a saved state that holds {expected}, as this {what} has, got {found}"
        )
