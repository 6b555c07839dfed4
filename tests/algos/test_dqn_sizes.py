"""DQN where agents have different numbers of actions: what stands in the padding teaches nothing."""

from __future__ import annotations

import dataclasses

import torch

from marl.algos.dqn import DQN, DQNConfig
from marl.envs.base import EnvSpec
from marl.types import Batch


def test_an_action_that_an_agent_does_not_have_is_no_part_of_its_lesson():
    """Agent a has three actions, b two; all Q are 0. A network says just anything of actions beyond its agent's own."""
    spec = EnvSpec("test/table", ("a", "b"), (1, 1), (3, 2), True)
    config = dataclasses.replace(DQNConfig(), hidden=(), max_grad_norm=None)
    learner = DQN(spec, [config], [0])
    learner.critic.flat.data.zero_()
    obs, nothing = torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1)
    batch = Batch(obs, nothing.long(), nothing, obs, nothing.bool())
    lesson = torch.tensor([1.0, 2.0, 100.0]).expand(1, 2, 1, 3)
    metrics = learner.update(batch, lesson)
    assert metrics["loss/critic"].tolist() == [[5002.5, 2.5]]  # (1 + 4 + 10 000) / 2 and (1 + 4) / 2
    moved = learner.critic.layers[0].get_parameter("weight")[0, :, 0] != 0
    assert moved.tolist() == [[True, True, True], [True, True, False]]
