"""Tabular policy reciprocity (PR paper, Algorithm 1), QD-learning and independent Q-learning.

``N`` agents hold a table ``[S, A]`` each. At a visit of (s, a), the k-th from 0, agent i moves by

    alpha_k [r_i + gamma max_a' Q_i(s', a') - Q_i(s, a)] + beta_k [Q*_i(s, a) - Q_i(s, a)]              (equation 5)
    Q*_i(s, a) = mean over l in N_i of  kappa_k Q_l(s, a) + (1 - kappa_k) Q#_l(s, a)                    (equation 6)

with ``alpha_k = a / (k + 1)^tau1`` and ``beta_k = b / (k + 1)^tau2`` (equation 8), i itself in N_i, and Q# the weighted
mean over the adjacent states (``Adjacency``). All agents step at once: every read comes before the first write.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.adjacency import Adjacency
from marl.classic.mdp import Array, TabularMDP
from marl.classic.networks import Network, make_network
from marl.classic.planning import discounted_values
from marl.types import State, UserError

log = logging.getLogger("marl")


class Rule(NamedTuple):
    """What the kernels need to know besides the tables; all of it is fixed.

    Attributes:
        gamma: discount.
        a, tau1: step size ``a / (k + 1)^tau1`` of the agent's own temporal difference.
        b, tau2: step size of the pull towards the others.
        summed: the pull is the sum over the neighbours (QD-learning), not their mean.
        spread, decay: weight ``spread / (k + 1)^decay`` of the adjacent states, that is ``1 - kappa_k``.
        starts, members: ``[T, N + 1]`` and flat: who talks to whom, as of ``Network``.
        offsets, adjacent, weights: ``[S + 1]`` and flat: as of ``Adjacency``.
    """

    gamma: float
    a: float
    tau1: float
    b: float
    tau2: float
    summed: bool
    spread: float
    decay: float
    starts: NDArray[np.int64]
    members: NDArray[np.int64]
    offsets: NDArray[np.int64]
    adjacent: NDArray[np.int64]
    weights: Array


@njit(cache=True)
def advance(q, visits, when, state, action, reward, next_state, terminated, rule, fresh):  # type: ignore[no-untyped-def]
    """One step of all agents, in place; for loops that are compiled themselves.

    ``q`` and ``visits`` ``[N, S, A]``, ``when`` the steps before this one, the rest ``[N]``; ``fresh`` is scratch.
    Agents whose state is negative take no part.
    """
    graph = rule.starts[when % rule.starts.shape[0]]
    for i in range(q.shape[0]):
        s, u = state[i], action[i]
        if s < 0:
            continue
        own = q[i, s, u]
        k = visits[i, s, u] + 1.0
        target = reward[i]
        if not terminated[i]:
            best = q[i, next_state[i], 0]
            for v in range(1, q.shape[2]):
                best = max(best, q[i, next_state[i], v])
            target += rule.gamma * best
        fresh[i] = own + rule.a * k**-rule.tau1 * (target - own)
        if rule.b > 0:
            spread = rule.spread * k**-rule.decay if rule.spread > 0 else 0.0
            same, adjacent = 0.0, 0.0
            for n in range(graph[i], graph[i + 1]):
                other = rule.members[n]
                same += q[other, s, u] - own
                if spread > 0:
                    for j in range(rule.offsets[s], rule.offsets[s + 1]):
                        adjacent += rule.weights[j] * (q[other, rule.adjacent[j], u] - own)
            pull = (1 - spread) * same + spread * adjacent
            if not rule.summed:
                pull /= graph[i + 1] - graph[i]
            fresh[i] += rule.b * k**-rule.tau2 * pull
    for i in range(q.shape[0]):
        if state[i] >= 0:
            q[i, state[i], action[i]] = fresh[i]
            visits[i, state[i], action[i]] += 1


@njit(cache=True)
def advance_many(q, visits, when, state, action, reward, next_state, terminated, rule):  # type: ignore[no-untyped-def]
    """``advance`` for ``[T, N]`` transitions, one step after the other."""
    fresh = np.empty(q.shape[0])
    for t in range(state.shape[0]):
        advance(q, visits, when + t, state[t], action[t], reward[t], next_state[t], terminated[t], rule, fresh)


class TabularQ:
    """What the three learners have in common.

    Attributes:
        q: ``[N, S, A]``, zeros at first.
        visits: ``[N, S, A]`` int64, how often each agent updated each entry.
        steps: updates so far; picks the graph of a time-varying network.
        rule: what ``advance`` needs.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        gamma: float,
        own: tuple[float, float],
        pull: tuple[float, float] = (0.0, 0.0),
        network: Network | None = None,
        adjacency: Adjacency | None = None,
        summed: bool = False,
        spread: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """``shape`` (N, S, A); ``own`` (a, tau1), ``pull`` (b, tau2), ``spread`` (spread, decay) as of ``Rule``."""
        for name, count in zip(("agents", "states", "actions"), shape, strict=True):
            if count < 1:
                raise UserError(f"{name}: expected 1 or more, got {count}")
        agents, states, _ = shape
        self._network = network or make_network("none", agents)
        self._adjacency = adjacency or Adjacency.alone(states)
        if self._network.agents != agents:
            raise UserError(f"network: expected one of {agents} agents, got one of {self._network.agents}")
        if self._adjacency.states != states:
            raise UserError(f"adjacency: expected one of {states} states, got one of {self._adjacency.states}")
        (a, tau1), (b, tau2) = own, pull
        if not 0 <= gamma < 1:
            raise UserError(f"gamma: expected a number from 0 to below 1, got {gamma:g}")
        if not (0 < a <= 1 and 0 <= b <= 1):
            raise UserError(f"a and b: expected 0 < a <= 1 and 0 <= b <= 1, got {a:g} and {b:g}")
        if not 0.5 < tau1 <= 1:
            raise UserError(f"tau1: expected more than 0.5 and 1 at most (equation 8), got {tau1:g}")
        if b > 0 and not 0 < tau2 < tau1:
            raise UserError(f"tau2: expected more than 0 and less than tau1 = {tau1:g}, got {tau2:g}")
        self.rule = Rule(
            gamma=float(gamma),
            a=float(a),
            tau1=float(tau1),
            b=float(b),
            tau2=float(tau2),
            summed=summed,
            spread=float(spread[0]),
            decay=float(spread[1]),
            starts=self._network.starts,
            members=self._network.members,
            offsets=self._adjacency.offsets,
            adjacent=self._adjacency.members,
            weights=self._adjacency.weights,
        )
        self.q: Array = np.zeros(shape)
        self.visits = np.zeros(shape, np.int64)
        self.steps = 0

    @property
    def average(self) -> Array:
        """The mean table of all agents, ``[S, A]``."""
        return self.q.mean(0)

    @property
    def greedy(self) -> NDArray[np.int64]:
        """Each agent's best action, ``[N, S]``; the lowest of several."""
        return self.q.argmax(-1)

    def update(
        self,
        state: NDArray[np.int64],
        action: NDArray[np.int64],
        reward: Array,
        next_state: NDArray[np.int64],
        terminated: NDArray[np.bool_],
    ) -> None:
        """One simultaneous step, every agent at its own (s_i, a_i); all arguments ``[N]``.

        Agents whose state is negative take no part (their others still read their table). Where ``terminated`` the
        successor is worth nothing. Raises ``UserError`` for shapes, states or actions that do not fit, and for rewards
        that are not finite.
        """
        self.update_many(state[None], action[None], reward[None], next_state[None], terminated[None])

    def update_many(
        self,
        state: NDArray[np.int64],
        action: NDArray[np.int64],
        reward: Array,
        next_state: NDArray[np.int64],
        terminated: NDArray[np.bool_],
    ) -> None:
        """``update`` for ``[T, N]`` transitions, in order; bit for bit what T calls of ``update`` would do."""
        agents, states, actions = self.q.shape
        state, action, next_state = (np.ascontiguousarray(each, np.int64) for each in (state, action, next_state))
        reward = np.ascontiguousarray(reward, np.float64)
        terminated = np.ascontiguousarray(terminated, np.bool_)
        shape = (len(state), agents)
        for name, each in (("state", state), ("action", action), ("reward", reward), ("next_state", next_state)):
            if each.shape != shape:
                raise UserError(f"{name}: expected {agents} entries a step, one for each agent, got {list(each.shape)}")
        if terminated.shape != shape:
            raise UserError(f"terminated: expected {agents} entries a step, got {list(terminated.shape)}")
        if not len(state):
            return
        live = state >= 0
        if (live & ~np.isfinite(reward)).any():
            raise UserError(f"reward: expected finite numbers, got {reward[live & ~np.isfinite(reward)][0]}")
        for name, each, most in (("state", state, states), ("action", action, actions)):
            if (live & ((each < 0) | (each >= most))).any():
                raise UserError(f"{name}: expected 0 to {most - 1}, got {each.min()} to {each.max()}")
        if (live & ~terminated & ((next_state < 0) | (next_state >= states))).any():
            raise UserError(f"next_state: expected 0 to {states - 1}, got {next_state.min()} to {next_state.max()}")
        advance_many(self.q, self.visits, self.steps, state, action, reward, next_state, terminated, self.rule)
        self.steps += len(state)

    def expected_sweep(self, transition: Array, reward: Array) -> None:
        """One visit of every (s, a) by every agent at once, with the expectation in place of the sample.

        ``transition`` ``[S, A, S]`` and mean rewards ``[N, S, A]``. Counts as one step.
        """
        agents, states, actions = self.q.shape
        if np.shape(transition) != (states, actions, states) or np.shape(reward) != self.q.shape:
            raise UserError(
                f"transition {list(np.shape(transition))} and reward {list(np.shape(reward))}: "
                f"expected {[states, actions, states]} and {[agents, states, actions]}"
            )
        rule, k = self.rule, self.visits + 1.0
        target = reward + rule.gamma * np.einsum("say,ny->nsa", transition, self.q.max(-1))
        change = rule.a * k**-rule.tau1 * (target - self.q)
        if rule.b > 0:
            links = self._links
            pull = np.einsum("nl,lsa->nsa", links, self.q) - links.sum(1)[:, None, None] * self.q
            if rule.spread > 0:
                spread = rule.spread * k**-rule.decay
                seen = np.einsum("nl,lsa->nsa", links, self._adjacency.average(self.q) - self.q)
                pull = pull + spread * seen
            change += rule.b * k**-rule.tau2 * pull
        self.q += change
        self.visits += 1
        self.steps += 1

    def state_dict(self) -> State:
        """Everything that changes."""
        return {"q": self.q.copy(), "visits": self.visits.copy(), "steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        """Go on from there, bit for bit; raises ``UserError`` for tables of another shape."""
        if np.shape(state["q"]) != self.q.shape:
            raise UserError(f"q: expected {list(self.q.shape)}, got {list(np.shape(state['q']))}")
        self.q[:] = state["q"]
        self.visits[:] = state["visits"]
        self.steps = int(state["steps"])

    @property
    def _links(self) -> Array:
        """``[N, N]``: the weight of each agent's table at this step, before the step size."""
        heard = self._network.graphs[self.steps % self._network.period] + np.eye(len(self.q))
        return heard if self.rule.summed else heard / heard.sum(1, keepdims=True)


class PolicyReciprocityQ(TabularQ):
    """Tabular policy reciprocity, equations 5, 6 and 8.

    With a constant ``kappa_same`` below 1 the tables agree but not on Q* (``adjacency_limit``), unlike what Theorem 3
    says: the adjacent states' pull decays more slowly than the rewards'. So by default it is annealed:
    ``1 - kappa_k = (1 - kappa_same) / (k + 1)^anneal_adjacency``.

    What all agree on is the optimum of the agents' *mean* reward where all have as many neighbours. Otherwise the means
    over neighbourhoods favour who is heard by many: on a fixed graph agent i counts 1 + its number of neighbours times
    in that reward. QD-learning counts all alike on every connected graph.

    Args:
        agents, states, actions: sizes.
        gamma: discount, below 1.
        network: who talks to whom.
        adjacency: S#; not looked at where ``kappa_same`` is 1.
        a, tau1: step size of the temporal difference.
        b, tau2: step size of the pull; ``a + b <= 1`` so that no step overshoots.
        kappa_same: weight of the same state beside the adjacent ones, from 0 to 1. (The paper's kappa of equation 6;
            equation 12 uses that letter for the opposite.)
        anneal_adjacency: the exponent, more than ``tau1 - tau2``; None: ``kappa_same`` is constant, with a warning. Not
            looked at where ``kappa_same`` is 1.

    Raises:
        UserError: sizes, step sizes or weights outside what is said above.
    """

    def __init__(
        self,
        agents: int,
        states: int,
        actions: int,
        gamma: float,
        network: Network,
        adjacency: Adjacency,
        a: float = 0.3,
        b: float = 0.3,
        tau1: float = 0.65,
        tau2: float = 0.35,
        kappa_same: float = 0.5,
        anneal_adjacency: float | None = 0.5,
    ) -> None:
        if a + b > 1:
            raise UserError(f"a + b: expected 1 at most, or a step overshoots, got {a:g} + {b:g} = {a + b:g}")
        if not 0 <= kappa_same <= 1:
            raise UserError(f"kappa_same: expected a number from 0 to 1, got {kappa_same:g}")
        if kappa_same < 1 and anneal_adjacency is not None and not anneal_adjacency > tau1 - tau2:
            raise UserError(
                f"anneal_adjacency: expected more than tau1 - tau2 = {tau1 - tau2:.4g}, or Q* is missed, "
                f"got {anneal_adjacency:g}"
            )
        spread = (1 - kappa_same, anneal_adjacency or 0.0)
        super().__init__((agents, states, actions), gamma, (a, tau1), (b, tau2), network, adjacency, spread=spread)
        network.warn_if_disconnected()
        if kappa_same < 1 and anneal_adjacency is None:
            log.warning(
                f"kappa_same = {kappa_same:g} held constant: the tables agree, but not on Q* unless Q* is its own "
                "adjacency mean; anneal_adjacency=0.5 converges"
            )


class QDLearning(TabularQ):
    """QD-learning (Kar, Moura and Poor 2013): ``Q_n -= beta sum over l in N_n of (Q_n - Q_l) - alpha [TD]``.

    Args:
        agents, states, actions, gamma, network, a, tau1, tau2: as of ``PolicyReciprocityQ``.
        b: factor of beta; None: .3 over the largest neighbourhood, itself counted. Policy reciprocity with
            ``kappa_same = 1`` on a graph where all have d neighbours is this with ``b / (d + 1)``.

    Raises:
        UserError: ``a + b d > 1`` for the largest number of neighbours d, among others.
    """

    def __init__(
        self,
        agents: int,
        states: int,
        actions: int,
        gamma: float,
        network: Network,
        a: float = 0.3,
        b: float | None = None,
        tau1: float = 0.65,
        tau2: float = 0.35,
    ) -> None:
        most = network.most_neighbours
        b = 0.3 / (most + 1) if b is None else b
        if most and a + b * most > 1:
            raise UserError(f"a + {most} b: expected 1 at most, b up to {(1 - a) / most:.4g}, got {a + b * most:g}")
        super().__init__((agents, states, actions), gamma, (a, tau1), (b, tau2), network, summed=True)
        network.warn_if_disconnected()


class IndependentQ(TabularQ):
    """Every agent for itself, on its own rewards (equation 1 with ``alpha_k = a / (k + 1)^tau1``)."""

    def __init__(
        self, agents: int, states: int, actions: int, gamma: float, a: float = 0.5, tau1: float = 0.65
    ) -> None:
        super().__init__((agents, states, actions), gamma, (a, tau1))


def adjacency_limit(transition: Array, reward: Array, gamma: float, adjacency: Adjacency) -> Array:
    """Where a constant ``kappa_same`` below 1 leads: ``[S, A]``, constant over each class of adjacent states.

    Within a class C of the adjacency walk with stationary law w, ``c_C,a = sum over s in C of w_s [r(s, a) + gamma sum
    over s' of P(s' | s, a) max_a' c_C(s'),a']``: the optimum of the process in which each class is one state. With one
    class, ``c_a = sum_s w_s r(s, a) + gamma max c``. Exact where all entries are visited equally often.

    Args:
        transition: ``[S, A, S]``.
        reward: ``[S, A]``, the mean over agents of the mean reward;
            where agents have different numbers of neighbours, weighted as of ``PolicyReciprocityQ``.
        gamma: discount.
        adjacency: S#.

    Raises:
        UserError: what is no stationary process, or has other states than ``adjacency``.
    """
    table = TabularMDP(transition, reward)
    if table.horizon is not None or table.states != adjacency.states:
        raise UserError(f"transition {list(np.shape(transition))}: expected [S, A, S] with S = {adjacency.states}")
    classes, law = adjacency.classes, adjacency.stationary
    belongs = np.eye(classes.max() + 1)[classes]
    merged = TabularMDP(
        np.einsum("sc,s,say,yd->cad", belongs, law, transition, belongs), np.einsum("sc,s,sa->ca", belongs, law, reward)
    )
    return discounted_values(merged, gamma).q[classes]
