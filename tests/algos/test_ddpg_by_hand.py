"""DDPG in numbers that a reader can check in the head: critics and actors without hidden layers, weights set.

With ``hidden=()`` agent i's critic is ``Q_i = w_s s + w_a a + b`` and its actor ``tanh(v s + c)``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.ddpg import DDPG, DDPGConfig
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.modules.stacked import StackedMLP
from marl.types import Batch, UserError, View

HALF = math.atanh(0.5)  # the bias of an actor that plays 1/2 everywhere


def make(agents: int = 2, members: int = 1, **settings: Any) -> DDPG:
    config = dataclasses.replace(DDPGConfig(hidden=(), gamma=0.5, actor_lr=0.1, critic_lr=0.1))
    for name, value in settings.items():
        config = replace(config, name.replace("__", "."), value)
    spec = EnvSpec("test/line", tuple("abc"[:agents]), (1,) * agents, (1,) * agents, False)
    learner = DDPG(spec, [config] * members, list(range(members)))
    for stack in (learner.actor, learner.critic, learner.target_actor, learner.target_critic):
        stack.flat.data.zero_()
    return learner


def put(stack: StackedMLP, network: int, *numbers: float) -> None:
    """Input weights, then the bias, of one linear network of every member."""
    stack.flat.data[:, network] = torch.tensor(numbers)


def rows(*per_agent: list[float]) -> Tensor:
    """``[1, N, B]``."""
    return torch.tensor([per_agent])


def batch(**changes: Any) -> Batch:
    """One row for each of two agents."""
    zero = rows([0.0], [0.0])
    given = Batch(zero[..., None], zero[..., None], zero, zero[..., None], zero.bool())
    return given._replace(**changes)


def two_agents(**settings: Any) -> tuple[DDPG, Batch]:
    """Target critics Q_0 = 2 s + 4 a + 1 and Q_1 = -s + 2 a + 3; target actors play 1/2 and -1/2; s' = 3 and 2."""
    learner = make(**settings)
    put(learner.target_critic, 0, 2.0, 4.0, 1.0)
    put(learner.target_critic, 1, -1.0, 2.0, 3.0)
    put(learner.target_actor, 0, 0.0, HALF)
    put(learner.target_actor, 1, 0.0, -HALF)
    return learner, batch(reward=rows([1.0], [2.0]), next_obs=rows([3.0], [2.0])[..., None])


def test_the_target_uses_the_target_networks_at_the_next_state():
    learner, given = two_agents()
    # Z_0 = 6 + 2 + 1 = 9, 1 + .5 * 9 = 5.5; Z_1 = -2 - 1 + 3 = 0, 2 + 0 = 2
    torch.testing.assert_close(learner.compute_target(given), rows([5.5], [2.0]))
    put(learner.critic, 0, 9.0, 9.0, 9.0)
    put(learner.actor, 0, 9.0, 9.0)
    torch.testing.assert_close(learner.compute_target(given), rows([5.5], [2.0]))


def test_a_termination_stops_the_bootstrap():
    learner, given = two_agents()
    given = given._replace(terminated=rows([1.0], [0.0]).bool())
    torch.testing.assert_close(learner.compute_target(given), rows([1.0], [2.0]))


def test_with_reciprocity_the_neighbours_target_critic_is_asked_at_my_state_and_action():
    learner, given = two_agents(reciprocity__kappa=0.5, reciprocity__adjacency="exact")
    # Q_1(3, .5) = -3 + 1 + 3 = 1: Z*_0 = (9 + 1) / 2 = 5, 1 + 2.5
    # Q_0(2, -.5) = 4 - 2 + 1 = 3: Z*_1 = (0 + 3) / 2 = 1.5, 2 + .75
    torch.testing.assert_close(learner.compute_target(given), rows([3.5], [2.75]))
    torch.testing.assert_close(learner.reciprocity.gap, torch.tensor([[4.0, 1.5]]))


def test_with_peer_adjacency_the_neighbour_looks_at_its_own_state():
    learner, given = two_agents(reciprocity__kappa=0.5, reciprocity__adjacency="peer")
    # Z*_0 = (9 + Z_1 = 0) / 2 = 4.5 and so is Z*_1: 1 + 2.25, 2 + 2.25
    torch.testing.assert_close(learner.compute_target(given), rows([3.25], [4.25]))


def test_with_mask_adjacency_and_no_neighbours_the_own_critic_is_asked_with_the_coordinate_zeroed():
    settings = {"reciprocity__kappa": 0.5, "reciprocity__adjacency": "mask", "reciprocity__graph": "self"}
    learner, given = two_agents(**settings)
    # s# = 0: Q_0 = 0 + 2 + 1 = 3, (9 + 3) / 2 = 6, 1 + 3; Q_1 = 0 - 1 + 3 = 2, (0 + 2) / 2 = 1, 2 + .5
    torch.testing.assert_close(learner.compute_target(given), rows([4.0], [2.5]))


def test_one_update_critic_then_actor_then_targets():
    """Every number of a whole update; see the comments."""
    learner, given = two_agents(tau=0.25)
    given = given._replace(obs=rows([1.0], [2.0])[..., None], action=rows([0.5], [1.0])[..., None])
    metrics = learner.update(given)
    # The online critics are 0, so their errors are the targets: squares 5.5^2 = 30.25, 2^2 = 4
    torch.testing.assert_close(metrics["loss/critic"], torch.tensor([[30.25, 4.0]]))
    torch.testing.assert_close(metrics["value/q_mean"], torch.zeros(1, 2))
    torch.testing.assert_close(metrics["value/target_mean"], torch.tensor([[5.5, 2.0]]))
    # Gradient -2 * 5.5 * (s, a, 1) = -11 (1, .5, 1): norm 11 * 1.5; -4 * (2, 1, 1): norm 4 sqrt(6)
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[16.5, 4 * math.sqrt(6)]]))
    # Adam's first step is the rate against the sign: all weights become .1
    torch.testing.assert_close(learner.critic.flat.data, torch.full((1, 2, 3), 0.1))
    # The actor climbs the critic just moved. mu = 0: Q_0 = .1 (1 + 0 + 1), Q_1 = .1 (2 + 0 + 1)
    torch.testing.assert_close(metrics["loss/actor"], torch.tensor([[-0.2, -0.3]]))
    # dQ/da = .1 and tanh' = 1: gradient -.1 (s, 1), norms .1 sqrt(2) and .1 sqrt(5)
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.tensor([[0.1 * math.sqrt(2), 0.1 * math.sqrt(5)]]))
    torch.testing.assert_close(learner.actor.flat.data, torch.full((1, 2, 2), 0.1))
    # Targets follow by a quarter: Q_0' = (2, 4, 1) * 3/4 + .1 / 4; Q_1' likewise
    torch.testing.assert_close(
        learner.target_critic.flat.data, torch.tensor([[[1.525, 3.025, 0.775], [-0.725, 1.525, 2.275]]])
    )
    torch.testing.assert_close(
        learner.target_actor.flat.data, torch.tensor([[[0.025, 0.75 * HALF + 0.025], [0.025, -0.75 * HALF + 0.025]]])
    )
    assert "value/target_gap" not in metrics


def test_the_actor_climbs_its_own_online_critic_whatever_kappa_is():
    """Z_i, not Z*_i: the paper blends the target only."""
    for kappa in (0.0, 0.9):
        learner = make(reciprocity__kappa=kappa)
        put(learner.critic, 0, 1.0, 2.0, 3.0)
        put(learner.critic, 1, 0.0, -2.0, 0.0)
        put(learner.actor, 0, 0.0, HALF)
        # Q_0(4, .5) = 4 + 1 + 3 = 8, Q_1(1, 0) = 0
        loss = learner.compute_loss_pi(batch(obs=rows([4.0], [1.0])[..., None]))
        torch.testing.assert_close(loss, rows([-8.0], [0.0]))


def test_the_loss_is_a_mean_over_the_batch_and_agents_do_not_meet():
    """Two rows: errors 2 and 4 give 10; agent 1's huge reward is not seen by agent 0."""
    learner = make()
    zero = torch.zeros(1, 2, 2, 1)
    given = Batch(zero, zero, rows([2.0, 4.0], [100.0, 0.0]), zero, torch.ones(1, 2, 2).bool())
    metrics = learner.update(given)
    # (4 + 16) / 2 = 10; gradient of the bias -2 * 3 = -6, the other inputs are 0
    torch.testing.assert_close(metrics["loss/critic"], torch.tensor([[10.0, 5000.0]]))
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[6.0, 100.0]]))


@pytest.mark.parametrize("name, agent", [("gamma", "target"), ("tau", "follow")])
def test_members_may_differ_in_gamma_and_tau(name, agent):
    spec = EnvSpec("test/line", ("a",), (1,), (1,), False)
    base = DDPGConfig(hidden=(), gamma=0.5, tau=0.5, actor_lr=0.0, critic_lr=0.0)
    learner = DDPG(spec, [base, dataclasses.replace(base, **{name: 0.25})], [0, 1])
    for stack in (learner.actor, learner.critic, learner.target_actor):
        stack.flat.data.zero_()
    put(learner.target_critic, 0, 0.0, 0.0, 8.0)
    zero = torch.zeros(2, 1, 1)
    given = Batch(zero[..., None], zero[..., None], zero, zero[..., None], zero.bool())
    if name == "gamma":  # .5 * 8 and .25 * 8
        assert learner.compute_target(given).flatten().tolist() == [4.0, 2.0]
    else:  # 8 - tau * 8
        learner.update(given)
        assert learner.target_critic.flat.data[:, 0, 2].tolist() == [4.0, 6.0]


def test_what_an_agent_does_not_have_is_played_as_zero_and_learns_nothing():
    """Exploration noise on a missing component would be stored, and the critic would read it."""
    spec = EnvSpec("test/hetero", ("a", "b"), (1, 2), (1, 2), False)
    learner = DDPG(spec, [DDPGConfig(hidden=(16,), actor_lr=0.1, critic_lr=0.1)], [0])
    obs = torch.ones(1, 2, 3, 2) * spec.obs_mask[:, None]
    for explore in (False, True):
        action = learner.act(View(obs), explore).action
        assert (action[0, 0, :, 1] == 0).all() and (action[0, 1] != 0).all()
    last = learner.actor.layers[-1]
    before = last.weight.detach().clone(), last.bias.detach().clone()
    learner.update(Batch(obs, action, torch.ones(1, 2, 3), obs, torch.zeros(1, 2, 3).bool()))
    for old, new in zip(before, (last.weight, last.bias), strict=True):
        assert torch.equal(old[0, 0, :, 1], new[0, 0, :, 1]) and (old[0, 1] != new[0, 1]).any()
    first = learner.critic.layers[0].weight[0, 0]  # inputs: s, padding, a, padding
    assert (first[[1, 3]] == 0).all() and (first[[0, 2]] != 0).any()


def test_discrete_actions_are_refused_with_what_fits():
    with pytest.raises(UserError, match="ddpg needs continuous actions, test/line has 3 discrete ones; maddpg"):
        DDPG(EnvSpec("test/line", ("a",), (1,), (3,), True), [DDPGConfig()], [0])
