"""Who talks to whom: graphs over the agents, fixed or changing from step to step.

The theory (PR paper, Assumption 3) asks that the agents be connected on average, ``lambda_2(E[L]) > 0``; links may be
down at any one step.
"""

from __future__ import annotations

import logging
import math
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components

from marl.classic.checks import Array, check_fits, generator
from marl.config import suggestion
from marl.types import UserError

Kind: TypeAlias = Literal["ring", "line", "complete", "star", "random", "none"]
log = logging.getLogger("marl")


class Network:
    """Undirected graphs over N agents, gone through in a cycle: step t has graph ``t % period``.

    Attributes:
        graphs: ``[T, N, N]`` bool, symmetric, no agent its own neighbour.
        starts: ``[T, N + 1]``; at step t, ``members[starts[t, i] : starts[t, i + 1]]`` are the agents that i hears,
            itself among them, in ascending order.
        members: flat.
    """

    def __init__(self, graphs: ArrayLike) -> None:
        """``graphs``: ``[N, N]``, or ``[T, N, N]`` for a sequence; not 0 means linked. Raises ``UserError``."""
        try:
            given = np.asarray(graphs)
        except ValueError:
            raise UserError("graphs: expected [N, N] or [T, N, N], got rows of different lengths") from None
        if given.dtype.kind not in "biuf" or np.isnan(given).any():
            raise UserError("graphs: expected numbers, 0 where two agents are not linked")
        found = given.astype(bool)
        if found.ndim == 2:
            found = found[None]
        if found.ndim != 3 or found.shape[1] != found.shape[2] or 0 in found.shape:
            raise UserError(f"graphs: expected [N, N] or [T, N, N], got {list(given.shape)}")
        for problem, where in (
            ("an undirected graph has both or neither of", found != found.transpose(0, 2, 1)),
            ("no agent is its own neighbour, so not", found & np.eye(found.shape[1], dtype=bool)),
        ):
            if where.any():
                t, i, j = (int(index[0]) for index in np.nonzero(where))
                raise UserError(f"graphs[{t}]: {problem} ({i}, {j}) and ({j}, {i})")
        self.graphs = found
        self._warned = False
        heard = found | np.eye(self.agents, dtype=bool)
        counts = np.concatenate([[0], heard.sum(-1).ravel()]).cumsum()
        self.starts: NDArray[np.int64] = np.stack(
            [counts[t * self.agents :][: self.agents + 1] for t in range(self.period)]
        )
        self.members: NDArray[np.int64] = np.nonzero(heard)[2]

    @property
    def agents(self) -> int:
        return self.graphs.shape[1]

    @property
    def period(self) -> int:
        """Graphs in the cycle."""
        return self.graphs.shape[0]

    @property
    def most_neighbours(self) -> int:
        """The largest number of neighbours, of any agent at any step, itself not counted."""
        return int(self.graphs.sum(-1).max())

    def laplacian(self, step: int = 0) -> Array:
        """``[N, N]``, degrees minus links, of the graph at that step."""
        return _laplacian(self.graphs[step % self.period].astype(np.float64))

    @cached_property
    def mean_laplacian(self) -> Array:
        """``[N, N]``, over one cycle."""
        return _laplacian(self.graphs.mean(0))

    @cached_property
    def lambda_2(self) -> float:
        """The second smallest eigenvalue of the mean Laplacian; 0 where not connected, infinite for one agent."""
        if self.agents == 1:
            return math.inf
        return max(float(np.linalg.eigvalsh(self.mean_laplacian)[1]), 0.0) if len(self.components) == 1 else 0.0

    @cached_property
    def components(self) -> list[list[int]]:
        """The groups of agents that never hear of each other, over the whole cycle."""
        count, labels = connected_components(self.graphs.any(0), directed=False)
        return [np.flatnonzero(labels == label).tolist() for label in range(count)]

    def warn_if_disconnected(self) -> None:
        """One line that names the components, the first time, where the theory's Assumption 3 fails."""
        if len(self.components) > 1 and not self._warned:
            self._warned = True
            names = " | ".join(f"{{{_ranges(group)}}}" for group in self.components)
            log.warning(
                f"network: {len(self.components)} components that never hear of each other, {names} (lambda_2 = 0): "
                "no consensus between them"
            )


def make_network(kind: Kind, agents: int, chance: float = 0.3, seed: int | np.random.SeedSequence = 0) -> Network:
    """The graph of that name over so many agents.

    Args:
        kind: ``ring``, ``line``, ``complete``, ``star`` (agent 0 in the middle), ``random`` or ``none``.
        agents: how many.
        chance: of each link of the ``random`` graph, which may come out disconnected.
        seed: of the ``random`` graph.

    Raises:
        UserError: an unknown kind, with the nearest.
    """
    if kind not in get_args(Kind):
        raise UserError(f"no network {kind!r}{suggestion(kind, get_args(Kind))}")
    if agents < 1:
        raise UserError(f"agents: expected 1 or more, got {agents}")
    check_fits("graphs", agents, agents)
    if kind == "complete":
        return Network(~np.eye(agents, dtype=bool))
    if kind == "random":
        return Network(_random(np.ones((1, agents, agents), bool), chance, seed))
    graph = np.zeros((agents, agents), bool)
    each = np.arange(agents - 1)
    if kind in ("line", "ring"):
        graph[each, each + 1] = True
        graph[0, -1] |= kind == "ring" and agents > 2
    if kind == "star":
        graph[0, 1:] = True
    return Network(graph | graph.T)


def failing_links(
    network: Network, failure: float, period: int = 1000, seed: int | np.random.SeedSequence = 0
) -> Network:
    """The network with each link down at each step with that probability, drawn once for ``period`` steps.

    The graph of step t is that of the network's own cycle, so ``period`` must be a multiple of its period.
    """
    if not 0 <= failure < 1:
        raise UserError(f"failure: expected a probability from 0 to below 1, got {failure:g}")
    if period < 1 or period % network.period:
        raise UserError(f"period: expected a multiple of the network's own {network.period}, got {period}")
    check_fits("graphs", period, network.agents, network.agents)
    cycle = np.tile(network.graphs, (period // network.period, 1, 1))
    return Network(_random(cycle, 1 - failure, seed))


def _random(graphs: NDArray[np.bool_], chance: float, seed: int | np.random.SeedSequence) -> NDArray[np.bool_]:
    """Each link of ``[T, N, N]`` kept with that chance, both directions alike."""
    if not 0 <= chance <= 1:
        raise UserError(f"chance: expected a probability, got {chance:g}")
    drawn = generator(seed).random(graphs.shape) < chance
    upper = np.triu(graphs & drawn, 1)
    return upper | upper.transpose(0, 2, 1)


def _laplacian(links: Array) -> Array:
    laplacian: Array = np.diag(links.sum(-1)) - links
    return laplacian


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers, neighbours as a range: ``0-3, 7``."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
