"""Learners of the deep half against the exact planners of ``marl.classic``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl.algos.dqn import DQN, DQNConfig
from marl.classic.mdp import TabularMDP
from marl.classic.planning import discounted_values
from marl.envs.base import EnvSpec
from marl.modules.reciprocity import ReciprocityConfig
from marl.types import Batch

STATES, ACTIONS, GAMMA = 6, 2, 0.8


def deterministic_process(seed: int) -> tuple[TabularMDP, np.ndarray]:
    """A process whose transitions are certain, and where each leads, ``[S, A]``."""
    rng = np.random.default_rng(seed)
    successor = rng.integers(0, STATES, (STATES, ACTIONS))
    return TabularMDP(np.eye(STATES)[successor], rng.random((STATES, ACTIONS))), successor


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_dqn_learns_the_planners_values_from_every_transition_also_where_equal_agents_read_each_other(kappa):
    """Three agents with the same rewards have the same Q*, so a blend of their values has it as its fixed point."""
    mdp, successor = deterministic_process(0)
    state, action = (torch.tensor(x).flatten() for x in np.indices((STATES, ACTIONS)))
    one_hot = torch.eye(STATES)

    def each(rows: torch.Tensor) -> torch.Tensor:
        return rows.expand(1, 3, *rows.shape).contiguous()

    batch = Batch(
        obs=each(one_hot[state]),
        action=each(action),
        reward=each(torch.tensor(mdp.reward, dtype=torch.float32).flatten()),
        next_obs=each(one_hot[torch.tensor(successor).flatten()]),
        terminated=each(torch.zeros(len(state), dtype=torch.bool)),
    )
    reciprocity = ReciprocityConfig(kappa=kappa, adjacency="exact")
    config = DQNConfig(gamma=GAMMA, lr=3e-3, hidden=(64,), target_interval=20, reciprocity=reciprocity)
    spec = EnvSpec("test/table", ("a", "b", "c"), (STATES,) * 3, (ACTIONS,) * 3, discrete=True)
    learner = DQN(spec, [config], [0])
    for _ in range(1500):
        learner.update(batch)
    learnt = learner.critic(each(one_hot))[0].detach().numpy()
    np.testing.assert_allclose(learnt, np.broadcast_to(discounted_values(mdp, GAMMA).q, learnt.shape), atol=0.02)
