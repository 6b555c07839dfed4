"""CoopLSVI (Dubey and Pentland): agents in parallel processes that pool their least-squares sums when it matters.

Algorithm 1 (homogeneous) and Algorithm 3 (heterogeneous). Never to synchronise (``LogDetTrigger(inf)``) gives isolated
agents, always (``LogDetTrigger(0)``) the fully centralised learner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from marl.classic.checks import check_fits
from marl.classic.lsvi import Bonus, CooperativeLSVI
from marl.classic.mdp import Array, HeterogeneousLinearMDP, LinearMDP, start_distribution
from marl.classic.ridge import LogDetTrigger
from marl.types import UserError


class CoopLSVI(CooperativeLSVI):
    """Algorithm 1: agents whose processes share features, rewards and transitions, at least nearly.

    Args:
        processes: one, in which each of ``agents`` agents has a copy of its own; or one for each agent, with the same
            features (Assumption 1, small heterogeneity; give its ``xi`` to the bonus).
        agents: M; with several processes it is their number.
        trigger: when to synchronise.
        bonus: beta.
        regulariser: lambda.
        replan: an agent plans anew after a synchronisation, or when det Lambda of its own grew by this factor at some
            step since it planned; 1: after every episode.
        seed: of the first states, transitions and ties.

    Raises:
        UserError: agents, features or numbers that make no sense, or more agents than fit into memory.
    """

    def __init__(
        self,
        processes: LinearMDP | Sequence[LinearMDP],
        agents: int | None = None,
        *,
        trigger: LogDetTrigger,
        bonus: Bonus = Bonus(),  # noqa: B008  (frozen)
        regulariser: float = 1.0,
        replan: float = 1.2,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        several = (processes,) if isinstance(processes, LinearMDP) else tuple(processes)
        if not several:
            raise UserError("processes: expected one or more, got none")
        if agents is not None and not isinstance(agents, int | np.integer):
            raise UserError(f"agents: expected a whole number, got {agents!r}")
        number = len(several) if agents is None else agents
        if number < 1 or len(several) not in (1, number):
            raise UserError(f"agents: expected {len(several)}, one for each process, got {number}")
        _check_alike(several)
        first = several[0]
        features = first.features[None]
        _check_sums(number, first.horizon, features)
        each = several if len(several) == number else several * number
        block = np.zeros(number, np.int64)
        super().__init__(each, features, block, trigger, bonus, regulariser, replan, seed)


class HeterogeneousCoopLSVI(CooperativeLSVI):
    """Algorithm 3: agents whose processes differ, and share parameters of features that name the agent.

    A row of agent n enters with its features ``phi(n, x, a)``, its reward and the value ``V(n, x')``, whoever
    regresses. So every agent plans for all n, and acts by its own.

    Args:
        processes: all agents'.
        trigger, bonus, regulariser, replan, seed: as of ``CoopLSVI``.

    Raises:
        UserError: numbers that make no sense, or more agents than fit into memory.
    """

    def __init__(
        self,
        processes: HeterogeneousLinearMDP,
        *,
        trigger: LogDetTrigger,
        bonus: Bonus = Bonus(),  # noqa: B008  (frozen)
        regulariser: float = 1.0,
        replan: float = 1.2,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        _check_sums(processes.agents, processes.horizon, processes.features)
        block = np.arange(processes.agents)
        super().__init__(processes.members, processes.features, block, trigger, bonus, regulariser, replan, seed)


def default_threshold(episodes: int, agents: int, dim: int) -> float:
    """``S = T log(M T) / (d M^2)``, with which the number of rounds does not grow with T (Lemma 1, Remark 2)."""
    _check_counts(episodes, agents)
    return episodes * math.log(agents * episodes) / (dim * agents**2)


def rounds_bound(episodes: int, threshold: float, horizon: int, dim: int, agents: int) -> float:
    """Lemma 1: at most ``2 H sqrt(d (T / S) log(M T)) + 4 H`` synchronisations; infinity for a threshold of 0."""
    _check_counts(episodes, agents)
    if threshold == 0:
        return math.inf
    return 2 * horizon * math.sqrt(dim * episodes / threshold * math.log(agents * episodes)) + 4 * horizon


def _check_counts(episodes: int, agents: int) -> None:
    for name, number in (("episodes", episodes), ("agents", agents)):
        if number < 1:
            raise UserError(f"{name}: expected 1 or more, got {number}")


def _check_sums(agents: int, horizon: int, features: Array) -> None:
    """Raises ``UserError`` where the agents' sums, with ``features`` ``[G, S, A, d]``, are too many."""
    blocks, states, _, dim = features.shape
    check_fits("agents x steps x sums", agents, horizon, dim, max(dim, blocks * states))


def _check_alike(processes: Sequence[LinearMDP]) -> None:
    first = processes[0]
    for number, process in enumerate(processes):
        start, expected = (start_distribution(p.start, p.states) for p in (process, first))
        if process.features.shape != first.features.shape or process.horizon != first.horizon:
            raise UserError(
                f"process {number}: features {list(process.features.shape)} and horizon {process.horizon}; expected "
                f"{list(first.features.shape)} and {first.horizon}, as of process 0"
            )
        if not (np.array_equal(process.features, first.features) and np.array_equal(start, expected)):
            raise UserError(
                f"process {number}: its features or its start differ from process 0's; expected the same for all: "
                "use LinearMDP.one_hot(process.tabular), or HeterogeneousCoopLSVI where features name the agent"
            )
