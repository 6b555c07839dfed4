"""CoopLSVI for one process that M agents move together (CoopLSVI paper, Algorithm 2): random scalarisations.

State and joint action are seen by all, rewards by their owner alone. In each episode all agents draw the same weights
``v`` of the simplex, plan the joint policy for the reward ``v @ r`` from the data that they shared, and take each its
own part of the joint action. They exchange rewards only when the data that is not shared yet would tell them enough.

The regression of step h has d weights for M outputs: a joint step adds ``Phi Phi^T`` to ``Lambda``, ``Phi r`` to b and
``Phi 1_M 1{x'}^T`` to N, once; ``Phi(x, a)`` is ``[d, M]``. Hence ``Lambda^-1 (b + N V)`` for any V and no history.
"""

from __future__ import annotations

import logging
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marl.classic.checks import check_counts
from marl.classic.communication import Communication
from marl.classic.fronts import checked_weights
from marl.classic.lsvi import Bonus
from marl.classic.mdp import Array, LinearMultiagentMDP
from marl.classic.multiagent_loops import Gathered, Indices, Shared, know, plan_joint, run_episodes, start_values
from marl.classic.ridge import RidgeStatistics
from marl.config import suggestion
from marl.types import State, UserError

JOINT_ACTION_LIMIT = 4096
"""The largest product of the agents' action counts that is planned over: each episode looks at all of them."""


class Episodes(NamedTuple):
    """What ``MultiagentCoopLSVI.fit`` saw.

    Attributes:
        weights: ``[n, M]``, the scalarisations v_t.
        values: ``[n, M]``, the exact values of the policies played, from the start's distribution.
        synchronised: ``[n]``, whether the agents exchanged their rewards after that episode.
    """

    weights: Array
    values: Array
    synchronised: NDArray[np.bool_]

    def regret(self, front: Array) -> Array:
        """``[n]``: ``max_k v_t @ front[k] - v_t @ values_t``, exact where ``front`` ``[K, M]`` covers every v."""
        return np.asarray((self.weights @ front.T).max(1) - (self.weights * self.values).sum(1))


class MultiagentCoopLSVI:
    """Algorithm 2, its centralised case, and agents that keep their rewards to themselves.

    Args:
        mdp: the process.
        threshold: S; the agents synchronise once ``det Lambda_h`` grew more than S-fold at some step h. 1 or less:
            after every episode (centralised).
        bonus: beta.
        width: what beta multiplies. ``spectral``: ``sqrt(||Phi^T Lambda^-1 Phi||_2)``; ``weighted``:
            ``||Phi v||_{Lambda^-1}``, which is no wider.
        regulariser: lambda.
        isolated: rewards are never exchanged: each agent plans the joint policy that is best for its own reward, from
            all it saw, and takes its own part of it. ``threshold`` then means nothing.
        seed: of the scalarisations, which all agents draw alike, and of the process.

    Attributes:
        episodes: lived so far.
        communication: the account. For each step of the episode an agent sends its rewards since the last exchange, or
            their sum ``sum_t Phi_m r_m`` ``[d]`` where that is shorter; the server sends each agent everyone's, or
            their sum. ``transition_floats`` counts the pairs ``(m, r)`` of Algorithm 2 instead.

    Raises:
        UserError: numbers outside their range, a joint action space above ``JOINT_ACTION_LIMIT``.
    """

    def __init__(
        self,
        mdp: LinearMultiagentMDP,
        *,
        threshold: float = 2.0,
        bonus: Bonus = Bonus(),  # noqa: B008  (frozen)
        width: Literal["spectral", "weighted"] = "spectral",
        regulariser: float = 1.0,
        isolated: bool = False,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        if mdp.actions > JOINT_ACTION_LIMIT:
            sizes = " x ".join(map(str, mdp.actions_each))
            raise UserError(
                f"{sizes} = {mdp.actions} joint actions: expected {JOINT_ACTION_LIMIT} at most; "
                "take fewer agents, or fewer actions each"
            )
        if not threshold >= 0:
            raise UserError(f"threshold: expected 0 or more (1: synchronise always), got {threshold}")
        if width not in ("spectral", "weighted"):
            raise UserError(f"width: {width!r} is not a choice{suggestion(width, ('spectral', 'weighted'))}")
        if threshold == math.inf and not isolated:
            logging.getLogger("marl").warning("threshold inf: agents that never synchronise learn nothing")
        self.mdp, self.bonus, self.isolated, self._weighted = mdp, bonus, isolated, width == "weighted"
        self._log_threshold = math.log(threshold) if threshold > 1 and not isolated else -math.inf
        self._known = know(mdp, isolated)
        groups, states, _, _, dim = self._known.columns.shape
        self.statistics = RidgeStatistics((groups, mdp.horizon), dim, states, regulariser)
        known = self.statistics
        self._gathered = Gathered(*(getattr(known, name) for name in Gathered._fields))
        widest = np.linalg.norm(self._known.columns, ord=2, axis=(-2, -1)) / math.sqrt(regulariser)  # Lambda = lambda I
        self._shared = Shared(
            known.inverse.copy(), known.reward_sum.copy(), known.next_sum.copy(), known.log_det.copy(),
            np.repeat(widest[:, None], mdp.horizon, axis=1),
        )  # fmt: skip
        self.episodes = self._pending = 0
        self.communication = Communication()
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        self._scalarisations, self._process = (np.random.default_rng(s) for s in sequence.spawn(2))

    def fit(self, n_episodes: int) -> Episodes:
        """Live so many more episodes; in pieces the same as at once. Raises ``UserError`` for less than 0."""
        if n_episodes < 0:
            raise UserError(f"n_episodes: expected 0 or more, got {n_episodes}")
        weights = self._scalarisations.dirichlet(np.ones(self.mdp.agents), n_episodes)
        draws = self._process.random((n_episodes, self.mdp.horizon + 1))
        betas = np.array([self._beta(self.episodes + t + 1) for t in range(n_episodes)])
        values, synchronised = run_episodes(
            self._known, self._gathered, self._shared, weights, draws, betas,
            self._weighted, self._log_threshold, float(self.statistics.regulariser),
        )  # fmt: skip
        self.episodes += n_episodes
        self.statistics.count += n_episodes
        if self.isolated:
            synchronised[:] = False
        self._count(synchronised)
        return Episodes(weights, values, synchronised)

    def plan(self, v: Array) -> tuple[Indices, Array]:
        """What all agents do in an episode with the weights ``v`` ``[M]``, from what they shared last.

        Returns:
            The joint policy ``[H, S]`` and the upper values ``[G, H + 1, S]``; G is M if isolated, else 1.

        Raises:
            UserError: other than M weights, or one that is negative or not finite.
        """
        v = checked_weights(v, self.mdp.agents, axes=1)
        policy, values = plan_joint(self._known, self._shared, v, self._beta(self.episodes + 1), self._weighted)
        return policy, values

    def recover(self, weights: Array) -> Array:
        """``[n, M]``: the exact values of the policies that are greedy for ``weights`` ``[n, M]``, without a bonus.

        Raises ``UserError`` for weights of another shape, for none, and for one that is negative or not finite.
        """
        known, shared = self._known, self._shared
        each = checked_weights(weights, self.mdp.agents)
        plans = (plan_joint(known, shared, v, 0.0, self._weighted) for v in each)
        return np.stack([start_values(known, policy) for policy, _ in plans])

    def _beta(self, episode: int) -> float:
        return float(self.bonus.at(episode, self.statistics.dim, self.mdp.horizon, self.mdp.agents))

    def _count(self, synchronised: NDArray[np.bool_]) -> None:
        """Enter these episodes' messages into the account."""
        ends = np.flatnonzero(synchronised) + 1
        covered = np.diff(ends, prepend=-self._pending)  # episodes that each exchange is about
        self._pending += len(synchronised) - int(covered.sum())
        agents, horizon, dim = self.mdp.agents, self.mdp.horizon, self.statistics.dim
        account = self.communication
        account.rounds += len(covered)
        account.floats_up += agents * horizon * int(np.minimum(dim, covered).sum())
        account.floats_down += agents * horizon * int(np.minimum(dim, agents * covered).sum())
        account.transition_floats += 2 * agents * (1 + agents) * horizon * int(covered.sum())

    def state_dict(self) -> State:
        """Everything that changes; going on from it gives the same bits."""
        return {
            "statistics": self.statistics.state_dict(),
            "shared": {name: array.copy() for name, array in self._shared._asdict().items()},
            "communication": self.communication.state_dict(),
            "scalarisations": self._scalarisations.bit_generator.state,
            "process": self._process.bit_generator.state,
            "counters": [self.episodes, self._pending],
        }

    def load_state_dict(self, state: State) -> None:
        """Of the same process and settings."""
        self.statistics.load_state_dict(state["statistics"])
        for name, array in self._shared._asdict().items():
            array[...] = state["shared"][name]
        self.communication.load_state_dict(state["communication"])
        self._scalarisations.bit_generator.state = state["scalarisations"]
        self._process.bit_generator.state = state["process"]
        self.episodes, self._pending = map(int, state["counters"])


def flat_threshold(episodes: int, agents: int, dim: int, budget: float) -> float:
    """``S = (1 + M T / d)^(1 / C)``, with which the number of rounds does not grow with T (Remark 9); C: ``budget``.

    Raises ``UserError`` for counts below 1, and for a budget so small that S is no finite number.
    """
    check_counts(episodes=episodes, agents=agents, dim=dim)
    least = math.log(1 + agents * episodes / dim) / 700  # S up to e^700; floats end at e^709
    if not budget >= least:
        raise UserError(f"budget: expected {least:.3g} or more, so that the threshold is finite, got {budget}")
    return float((1 + agents * episodes / dim) ** (1 / budget))


def rounds_bound(
    episodes: int, agents: int, dim: int, horizon: int, threshold: float, regulariser: float = 1.0
) -> float:
    """Lemma 3: at most ``d H log_S(1 + M T / (lambda d)) + H`` synchronisations; T for a threshold of 1 or less."""
    check_counts(episodes=episodes, agents=agents, dim=dim, horizon=horizon)
    if threshold <= 1:
        return episodes
    return dim * horizon * math.log(1 + agents * episodes / (regulariser * dim), threshold) + horizon
