"""SUB-SAMPLE-Q beyond the cell cap (Discussion 3.5): a network in place of the table.

``C(L + k - 1, k)`` cells are too many to store, but a network that sees (s_g, F), F the histogram of the k local states
(Definition 4.1), has as many weights for any k. It learns what ``SubsampleQ`` stores, Q without its mean of r_l:

    Q(s_g, s_Delta, a) = mean r_l(s_i, s_g) + values(s_g, F)[a]
    values(s_g, F)[a] <- r_g(s_g, a) + gamma E[mean r_l(s_i', s_g') + max_a' values(s_g', F')[a']]

With the process at hand as a generative model there is no replay: each step draws a fresh batch of cells, and for each
cell one sample of what follows every action (m = 1 of equation 5, anew each time).

A constant decides no action but dwarfs what does: in demand response values are 25 to 37 and an action changes them by
tenths. So the network learns ``values - level / (1 - gamma)`` only, with the mean right-hand side, ``level``, followed
beside it (relative value iteration); what is left is of the size of a reward.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.draws import AliasRows, alias_rows, draw_column
from marl.classic.subsample.multisets import Integers
from marl.classic.subsample.system import LocalGlobalSystem
from marl.types import State, UserError

if TYPE_CHECKING:
    import torch


class HistogramDQN:
    """A Q-network of (s_g one-hot, histogram), and its greedy policy; ``execute`` plays it like a table.

    Cells are drawn uniformly: s_g from G, the multiset from all of size k. Two hidden layers with ReLU, Adam with the
    rate ``learning_rate / sqrt(1 + steps / 1000)``, and a target network that follows by a small part at each step; the
    target network, smoother, is the one that acts.

    Args:
        system: the process.
        k: local agents of the surrogate system, any number.
        hidden: units of a hidden layer.
        batch: cells of a step.
        learning_rate: of Adam, at first.
        follow: the part by which the target network moves towards the learning one at each step.
        seed: of the first weights and all samples.

    Attributes:
        steps: gradient steps done.
        level: ``(1 - gamma)`` times the part of the values that is the same in all cells.
        loss: mean squared error of the last step, in squared units of reward.

    Raises:
        UserError: a size below 1, a learning rate or ``follow`` outside (0, 1].
    """

    def __init__(
        self,
        system: LocalGlobalSystem,
        k: int,
        hidden: int = 64,
        batch: int = 256,
        learning_rate: float = 3e-3,
        follow: float = 0.02,
        seed: int = 0,
    ) -> None:
        import torch

        if min(k, hidden, batch) < 1:
            raise UserError(f"k = {k}, hidden = {hidden}, batch = {batch}: expected 1 or more of each")
        for name, value in (("learning_rate", learning_rate), ("follow", follow)):
            if not 0 < value <= 1:
                raise UserError(f"{name} = {value}: expected a number above 0, 1 at most")
        self.system, self.k, self.batch = system, k, batch
        self.learning_rate, self.follow = learning_rate, follow
        weights, self._samples = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
        sizes = (system.global_states + system.local_states, hidden, hidden, system.actions)
        arrays = [a for low, high in pairwise(sizes) for a in _layer(weights, low, high)]
        self._weights = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in arrays]
        self._target = [w.detach().clone() for w in self._weights]
        self._adam = torch.optim.Adam(self._weights, lr=learning_rate)
        self._local_rows = alias_rows(system.local_transition.reshape(-1, system.local_states))
        self._global_sums = system.global_transition.cumsum(-1)
        self._scale = system.reward_bound or 1.0
        self.steps = 0
        self.level = 0.0
        self.loss = np.inf

    def fit(self, n_steps: int) -> HistogramDQN:
        """Go on for that many gradient steps."""
        import torch

        for _ in range(n_steps):
            state, elements = self._draw_cells()
            goals = self._goals(state, elements)
            goal = torch.from_numpy(((goals - self.level) / self._scale).astype(np.float32))
            self.level += self.follow * (float(goals.mean()) - self.level)
            error = _network(self._weights, self._inputs(state, _histograms(elements, self.system.local_states))) - goal
            self._adam.param_groups[0]["lr"] = self.learning_rate / np.sqrt(1 + self.steps / 1000)
            self._adam.zero_grad()
            loss = error.square().mean()
            loss.backward()
            self._adam.step()
            with torch.no_grad():
                for slow, weight in zip(self._target, self._weights, strict=True):
                    slow.lerp_(weight, self.follow)
            self.steps += 1
            self.loss = float(loss.detach()) * self._scale**2
        return self

    def values(self, global_state: Integers, local_states: Integers) -> Array:
        """What ``SubsampleQ.values`` holds, ``[R, A]``, for global states ``[R]`` and k local ones each, ``[R, k]``."""
        global_state, local_states = np.asarray(global_state), np.asarray(local_states, np.int64)
        if local_states.shape != (len(global_state), self.k):
            raise UserError(f"local states {list(local_states.shape)}: expected {[len(global_state), self.k]}")
        relative = self._relative(global_state, _histograms(local_states, self.system.local_states))
        return relative + self.level / (1 - self.system.gamma)

    def act(self, global_state: Integers, local_states: Integers) -> Integers:
        """Greedy actions ``[R]`` for global states ``[R]`` and the states of k sampled agents, ``[R, k]``."""
        return self.values(global_state, local_states).argmax(1)

    def state_dict(self) -> State:
        """Arrays and JSON values only."""
        moments = [self._adam.state[w] for w in self._weights] if self.steps else []
        return {
            "steps": self.steps,
            "level": self.level,
            "loss": float(self.loss),
            "samples": self._samples.bit_generator.state,
            "weights": {str(i): w.detach().numpy().copy() for i, w in enumerate(self._weights)},
            "target": {str(i): w.numpy().copy() for i, w in enumerate(self._target)},
            "first": {str(i): m["exp_avg"].numpy().copy() for i, m in enumerate(moments)},
            "second": {str(i): m["exp_avg_sq"].numpy().copy() for i, m in enumerate(moments)},
        }

    def load_state_dict(self, state: State) -> None:
        import torch

        self.steps, self.level, self.loss = int(state["steps"]), float(state["level"]), float(state["loss"])
        self._samples.bit_generator.state = state["samples"]
        with torch.no_grad():
            for i, (weight, slow) in enumerate(zip(self._weights, self._target, strict=True)):
                weight.copy_(_tensor(state["weights"][str(i)]))
                slow.copy_(_tensor(state["target"][str(i)]))
        self._adam.state.clear()
        for i, weight in enumerate(self._weights if self.steps else []):
            self._adam.state[weight] = {
                "step": torch.tensor(float(self.steps)),
                "exp_avg": _tensor(state["first"][str(i)]),
                "exp_avg_sq": _tensor(state["second"][str(i)]),
            }

    def _draw_cells(self) -> tuple[Integers, Integers]:
        """Global states ``[batch]`` and local ones ``[batch, k]``."""
        elements = np.empty((self.batch, self.k), np.int64)
        _draw_multisets(elements, self.system.local_states, self._samples)
        return self._samples.integers(self.system.global_states, size=self.batch), elements

    def _goals(self, state: Integers, elements: Integers) -> Array:
        """One sample of the right-hand side for every action, ``[batch, A]``."""
        system = self.system
        kernels = np.arange(system.actions if system.follows_action else 1)
        first = (state[:, None] * len(kernels) + kernels) * system.local_states
        moved = np.empty((self.batch, len(kernels), system.local_states))
        _move_histograms(elements, first, self._local_rows, self._samples, moved)
        moved = np.broadcast_to(moved, (self.batch, system.actions, system.local_states))
        # one number decides s_g' for all actions; that the last chance is left out guards against rounding
        uniform = self._samples.random((self.batch, 1, 1))
        then = (self._global_sums[state, :, :-1] <= uniform).sum(-1)
        ahead = self._relative(then.reshape(-1), moved.reshape(-1, system.local_states)).max(1).reshape(then.shape)
        reward = (moved * system.local_reward[then]).sum(-1)
        return np.asarray(system.global_reward[state] + system.gamma * (reward + ahead))

    def _relative(self, state: Integers, histogram: Array) -> Array:
        import torch

        with torch.no_grad():
            return np.asarray(_network(self._target, self._inputs(state, histogram)).numpy() * self._scale, np.float64)

    def _inputs(self, state: Integers, histogram: Array) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.hstack([np.eye(self.system.global_states)[state], histogram]).astype(np.float32))


def _layer(generator: np.random.Generator, inputs: int, outputs: int) -> tuple[Array, Array]:
    """Weights ``[inputs, outputs]`` that keep the variance through a ReLU (He et al. 2015), and biases of 0."""
    return generator.normal(size=(inputs, outputs)) * np.sqrt(2 / inputs), np.zeros(outputs)


def _network(weights: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(weights) - 2, 2):
        inputs = (inputs @ weights[i] + weights[i + 1]).relu()
    return inputs @ weights[-2] + weights[-1]


def _tensor(values: Any) -> torch.Tensor:
    import torch

    return torch.tensor(np.asarray(values), dtype=torch.float32)


def _histograms(elements: Integers, states: int) -> Array:
    """``[R, k]`` states -> shares ``[R, L]``; raises ``UserError`` for a state outside 0..L-1."""
    if elements.size and not (elements.min() >= 0 and elements.max() < states):
        raise UserError(
            f"local state {elements.min() if elements.min() < 0 else elements.max()}: expected 0 to {states - 1}"
        )
    rows = np.arange(len(elements))[:, None] * states
    counts = np.bincount((rows + elements).reshape(-1), minlength=len(elements) * states)
    return np.asarray(counts.reshape(-1, states) / elements.shape[1])


@njit(nogil=True, cache=True)
def _draw_multisets(out: Integers, states: int, generator: np.random.Generator) -> None:
    """Each row a multiset, all equally likely: Polya's urn, a copy of an earlier element or a fresh state."""
    for row in range(out.shape[0]):
        for i in range(out.shape[1]):
            ball = np.int64(generator.random() * (states + i))
            out[row, i] = ball if ball < states else out[row, ball - states]


@njit(nogil=True, cache=True)
def _move_histograms(
    elements: Integers, first: Integers, rows: AliasRows, generator: np.random.Generator, out: NDArray[np.float64]
) -> None:
    """``out[r, u]``: the histogram of the elements of row r, each moved by row ``first[r, u] + element``."""
    starts, keep, columns, others = rows
    k = elements.shape[1]
    out[:] = 0.0
    for r in range(elements.shape[0]):
        for i in range(k):
            uniform = generator.random()
            for u in range(first.shape[1]):
                row = first[r, u] + elements[r, i]
                out[r, u, draw_column(starts, keep, columns, others, row, uniform)] += 1.0 / k
