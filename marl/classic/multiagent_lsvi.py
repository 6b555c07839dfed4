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
from numba import njit
from numpy.typing import NDArray

from marl.classic.communication import Communication
from marl.classic.lsvi import Bonus
from marl.classic.mdp import Array, LinearMultiagentMDP
from marl.classic.ridge import RidgeStatistics, add_row, ridge_weights
from marl.config import suggestion
from marl.types import State, UserError

Indices = NDArray[np.int64]

JOINT_ACTION_LIMIT = 4096
"""The largest product of the agents' action counts that is planned over: each episode looks at all of them."""

TIE = 1e-9
"""Joint actions this close are tied, so that agents whose sums were rounded differently still choose alike."""


class Known(NamedTuple):
    """The process as the loops read it. One group of all agents; M groups of one where each knows its own reward only.

    Attributes:
        columns: ``[G, S, A, K, d]``, ``Phi^T``: G groups of K agents whose rewards one regression learns.
        reward: ``[H, S, A, M]``, given to the agents only as they are earned.
        transition: ``[H, S, A, S]``, and ``cumulative`` along the last axis: to draw from, and for exact values.
        start: ``[S]``, and ``start_cumulative``.
        places, sizes: ``[M]``: agent m's own action in joint action a is ``a // places[m] % sizes[m]``.
    """

    columns: Array
    reward: Array
    transition: Array
    cumulative: Array
    start: Array
    start_cumulative: Array
    places: Indices
    sizes: Indices


class Gathered(NamedTuple):
    """``RidgeStatistics`` of shape ``[G, H]`` as the loops read it: all that happened, shared or not."""

    gram: Array
    inverse: Array
    reward_sum: Array
    next_sum: Array
    log_det: Array


class Shared(NamedTuple):
    """The same at the last exchange: what agents plan with.

    Attributes:
        inverse: ``[G, H, d, d]``, of ``Lambda``.
        reward_sum: ``[G, H, d]``, b.
        next_sum: ``[G, H, d, S]``, N.
        log_det: ``[G, H]``, of ``Lambda``.
        width: ``[G, H, S, A]``, ``sqrt(||Phi^T Lambda^-1 Phi||_2)``.
    """

    inverse: Array
    reward_sum: Array
    next_sum: Array
    log_det: Array
    width: Array


@njit(cache=True)
def spectral_width(inverse: Array, columns: Array) -> Array:
    """``sqrt(||Phi^T Lambda^-1 Phi||_2)`` ``[S, A]``; ``inverse`` ``[d, d]``, ``columns`` ``[S, A, K, d]``: Phi^T."""
    states, actions, outputs, dim = columns.shape
    scaled = np.dot(columns.reshape(-1, dim), inverse).reshape(columns.shape)
    width = np.empty((states, actions))
    gram = np.empty((outputs, outputs))
    for x in range(states):
        for a in range(actions):
            for i in range(outputs):
                for j in range(outputs):
                    gram[i, j] = np.dot(scaled[x, a, i], columns[x, a, j])
            if outputs == 1:
                largest = gram[0, 0]
            elif outputs == 2:
                largest = (gram[0, 0] + gram[1, 1]) / 2 + math.hypot((gram[0, 0] - gram[1, 1]) / 2, gram[0, 1])
            else:
                largest = np.linalg.eigvalsh(gram)[-1]
            width[x, a] = math.sqrt(max(largest, 0.0))
    return width


@njit(cache=True)
def plan_group(
    shared: Shared, group: int, columns: Array, weights: Array, beta: float, weighted: bool
) -> tuple[Indices, Array]:
    """Backward recursion of one group (lines 6 to 10): its joint policy ``[H, S]`` and the upper values ``[H + 1, S]``.

    ``Q_h = min(H - h, weights @ Phi^T w_h + beta * width)``, h from 0; among tied actions the lowest. ``columns``
    ``[S, A, K, d]``, ``weights`` ``[K]``; ``weighted``: the width is ``||Phi weights||_{Lambda^-1}``.
    """
    horizon, states, actions = shared.width.shape[1:]
    outputs, dim = columns.shape[2:]
    policy = np.zeros((horizon, states), np.int64)
    values = np.zeros((horizon + 1, states))
    phi = np.zeros((states, actions, 1, dim))  # Phi @ weights
    for x in range(states):
        for a in range(actions):
            for k in range(outputs):
                for i in range(dim):
                    phi[x, a, 0, i] += weights[k] * columns[x, a, k, i]
    for h in range(horizon - 1, -1, -1):
        inverse = shared.inverse[group, h]
        w = ridge_weights(inverse, shared.reward_sum[group, h], shared.next_sum[group, h], values[h + 1])
        width = spectral_width(inverse, phi) if weighted else shared.width[group, h]
        q = np.dot(phi.reshape(-1, dim), w).reshape(states, actions)
        for x in range(states):
            for a in range(actions):
                q[x, a] = min(q[x, a] + beta * width[x, a], horizon - h)
            values[h, x] = q[x].max()
            while q[x, policy[h, x]] < values[h, x] - TIE:
                policy[h, x] += 1
    return policy, values


@njit(cache=True)
def plan_joint(known: Known, shared: Shared, v: Array, beta: float, weighted: bool) -> tuple[Indices, Array]:
    """What all agents do ``[H, S]``, each its part of its group's plan, and the groups' values ``[G, H + 1, S]``."""
    groups, horizon, states, _ = shared.width.shape
    joint = np.zeros((horizon, states), np.int64)
    values = np.zeros((groups, horizon + 1, states))
    for g in range(groups):
        weights = v if groups == 1 else np.ones(1)
        policy, upper = plan_group(shared, g, known.columns[g], weights, beta, weighted)
        for h in range(horizon):
            for x in range(states):
                values[g, h, x] = upper[h, x]
                own = policy[h, x] // known.places[g] % known.sizes[g] * known.places[g]
                joint[h, x] += policy[h, x] if groups == 1 else own
    return joint, values


@njit(cache=True)
def start_values(known: Known, policy: Indices) -> Array:
    """Exact: what a joint policy ``[H, S]`` earns each agent, ``[M]``, from the start's distribution."""
    horizon, states = policy.shape
    agents = known.reward.shape[3]
    values = np.zeros((horizon + 1, states, agents))
    for h in range(horizon - 1, -1, -1):
        for x in range(states):
            a = policy[h, x]
            for m in range(agents):
                values[h, x, m] = known.reward[h, x, a, m]
                for y in range(states):
                    values[h, x, m] += known.transition[h, x, a, y] * values[h + 1, y, m]
    return np.dot(known.start, values[0])


@njit(cache=True)
def synchronise(known: Known, gathered: Gathered, shared: Shared, regulariser: float) -> None:
    """Lines 21 to 30: all that was gathered becomes shared, in place; inverses are taken anew, without drift."""
    groups, horizon, dim, states = shared.next_sum.shape
    for g in range(groups):
        for h in range(horizon):
            whole = gathered.gram[g, h].copy()
            for i in range(dim):
                whole[i, i] += regulariser
            inverse = np.linalg.inv(whole)
            width = spectral_width(inverse, known.columns[g])
            for i in range(dim):  # numbers one by one: Numba compiles whole arrays' assignments for seconds
                shared.reward_sum[g, h, i] = gathered.reward_sum[g, h, i]
                for j in range(dim):
                    gathered.inverse[g, h, i, j] = shared.inverse[g, h, i, j] = inverse[i, j]
                for x in range(states):
                    shared.next_sum[g, h, i, x] = gathered.next_sum[g, h, i, x]
            for x in range(states):
                for a in range(width.shape[1]):
                    shared.width[g, h, x, a] = width[x, a]
            shared.log_det[g, h] = gathered.log_det[g, h]


@njit(cache=True)
def run_episodes(
    known: Known, gathered: Gathered, shared: Shared, weights: Array, draws: Array, betas: Array,
    weighted: bool, log_threshold: float, regulariser: float,
) -> tuple[Array, NDArray[np.bool_]]:  # fmt: skip
    """One episode for each row of ``weights`` ``[n, M]``, ``betas`` ``[n]`` and ``draws`` ``[n, H + 1]`` in [0, 1).

    The draws are for the first state and each step's successor. ``gathered`` and ``shared`` are changed in place.

    Returns:
        The exact values ``[n, M]`` of the policies played, and after which episodes ``[n]`` the agents synchronised.
    """
    groups, last = len(known.columns), len(known.start) - 1
    values = np.zeros((len(weights), known.reward.shape[3]))
    synchronised = np.zeros(len(weights), np.bool_)
    for t in range(len(weights)):
        policy, _ = plan_joint(known, shared, weights[t], betas[t], weighted)
        values[t] = start_values(known, policy)
        x = min(np.searchsorted(known.start_cumulative, draws[t, 0], side="right"), last)
        for h in range(len(policy)):
            a = policy[h, x]
            following = min(np.searchsorted(known.cumulative[h, x, a], draws[t, h + 1], side="right"), last)
            for g in range(groups):
                for k in range(known.columns.shape[3]):
                    gathered.log_det[g, h] += add_row(
                        gathered.gram[g, h], gathered.inverse[g, h], gathered.reward_sum[g, h],
                        gathered.next_sum[g, h], known.columns[g, x, a, k], known.reward[h, x, a, g + k], following,
                    )  # fmt: skip
            x = following
        if (gathered.log_det - shared.log_det).max() > log_threshold:
            synchronise(known, gathered, shared, regulariser)
            synchronised[t] = True
    return values, synchronised


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
        self._known = _known(mdp, isolated)
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
        """Live so many more episodes; in pieces the same as at once."""
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
        """
        v = np.asarray(v, np.float64)
        policy, values = plan_joint(self._known, self._shared, v, self._beta(self.episodes + 1), self._weighted)
        return policy, values

    def recover(self, weights: Array) -> Array:
        """``[n, M]``: the exact values of the policies that are greedy for ``weights`` ``[n, M]``, without a bonus."""
        plans = (plan_joint(self._known, self._shared, v, 0.0, self._weighted) for v in weights)
        return np.stack([start_values(self._known, policy) for policy, _ in plans])

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
    """``S = (1 + M T / d)^(1 / C)``, with which the number of rounds does not grow with T (Remark 9); C: ``budget``."""
    return float((1 + agents * episodes / dim) ** (1 / budget))


def rounds_bound(
    episodes: int, agents: int, dim: int, horizon: int, threshold: float, regulariser: float = 1.0
) -> float:
    """Lemma 3: at most ``d H log_S(1 + M T / (lambda d)) + H`` synchronisations; T for a threshold of 1 or less."""
    if threshold <= 1:
        return episodes
    return dim * horizon * math.log(1 + agents * episodes / (regulariser * dim), threshold) + horizon


def _known(mdp: LinearMultiagentMDP, isolated: bool) -> Known:
    columns = np.moveaxis(mdp.joint_features, -1, 2)  # [S, A, M, d]
    groups = np.moveaxis(columns, 2, 0)[:, :, :, None] if isolated else columns[None]
    transition = mdp.scalarised(np.ones(mdp.agents)).transition
    start = np.asarray(mdp.start, np.float64)
    sizes = np.array(mdp.actions_each, np.int64)
    places = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    return Known(
        np.ascontiguousarray(groups), np.ascontiguousarray(mdp.reward), np.ascontiguousarray(transition),
        np.cumsum(transition, -1), start, np.cumsum(start), places, sizes,
    )  # fmt: skip
