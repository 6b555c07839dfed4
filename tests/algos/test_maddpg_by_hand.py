"""MADDPG in numbers that a reader can check in the head: joint critics, own-action replacement, discrete actions.

With ``hidden=()`` and two agents of width 1, critic i is linear in ``(o_0, o_1, a_0, a_1)`` and a bias.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.maddpg import MADDPG, MADDPGConfig
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.types import Batch, View

HALF = math.atanh(0.5)


def make(obs_sizes: tuple[int, ...] = (1, 1), action_sizes: tuple[int, ...] = (1, 1), **settings: Any) -> MADDPG:
    """Weights are all zero."""
    config = MADDPGConfig(hidden=(), gamma=0.5, actor_lr=0.1, critic_lr=0.1, action_l2=0.0)
    discrete = settings.pop("discrete", False)
    for name, value in settings.items():
        config = replace(config, name.replace("__", "."), value)
    spec = EnvSpec("test/line", tuple("abc"[: len(obs_sizes)]), obs_sizes, action_sizes, discrete)
    learner = MADDPG(spec, [config], [0])
    for stack in (learner.actor, learner.critic, learner.target_actor, learner.target_critic):
        stack.flat.data.zero_()
    return learner


def rows(*per_agent: list[float]) -> Tensor:
    return torch.tensor([per_agent])


def batch(agents: int = 2, size: int = 1, width: int = 1, **changes: Any) -> Batch:
    zero = torch.zeros(1, agents, size)
    obs = torch.zeros(1, agents, size, 1)
    return Batch(obs, torch.zeros(1, agents, size, width), zero, obs.clone(), zero.bool())._replace(**changes)


CRITICS = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0], [-1.0, 0.0, 2.0, -2.0, 1.0]]])
"""Q_0 = o_0 + 2 o_1 + 3 a_0 + 4 a_1 + 5 and Q_1 = -o_0 + 2 a_0 - 2 a_1 + 1."""


def two_agents(**settings: Any) -> tuple[MADDPG, Batch]:
    """Target actors play 1/2 and -1/2; o' = 3 and 2; rewards 1 and 2."""
    learner = make(**settings)
    learner.target_critic.flat.data.copy_(CRITICS)
    learner.target_actor.flat.data.copy_(torch.tensor([[[0.0, HALF], [0.0, -HALF]]]))
    return learner, batch(reward=rows([1.0], [2.0]), next_obs=rows([3.0], [2.0])[..., None])


def test_the_target_sees_everybodys_next_observation_and_target_action():
    learner, given = two_agents()
    # Z_0 = 3 + 4 + 1.5 - 2 + 5 = 11.5, 1 + 5.75; Z_1 = -3 + 1 + 1 + 1 = 0, 2
    torch.testing.assert_close(learner.compute_target(given), rows([6.75], [2.0]))
    terminated = given._replace(terminated=torch.tensor([[[True], [False]]]))
    torch.testing.assert_close(learner.compute_target(terminated), rows([1.0], [2.0]))


def test_with_reciprocity_the_neighbours_critic_is_asked_at_the_same_joint_state():
    learner, given = two_agents(reciprocity__kappa=0.5, reciprocity__adjacency="exact")
    # both Z* are (11.5 + 0) / 2 = 5.75: 1 + 2.875 and 2 + 2.875
    torch.testing.assert_close(learner.compute_target(given), rows([3.875], [4.875]))


def test_with_peer_adjacency_the_neighbour_stands_in_my_place():
    learner, given = two_agents(reciprocity__kappa=0.5, reciprocity__adjacency="peer")
    # exchanged: o = (2, 3), a = (-.5, .5). Q_1 = -2 - 1 - 1 + 1 = -3: Z*_0 = (11.5 - 3) / 2 = 4.25, 1 + 2.125
    # Q_0 = 2 + 6 - 1.5 + 2 + 5 = 13.5: Z*_1 = (0 + 13.5) / 2 = 6.75, 2 + 3.375
    torch.testing.assert_close(learner.compute_target(given), rows([3.125], [5.375]))


def test_adjacent_states_change_one_coordinate_of_the_joint_observation():
    """Critic sum of two observations, mask: o' = (3, 2) becomes (0, 2) or (3, 0), so Z# is 2 or 3."""
    settings = {"reciprocity__kappa": 1.0, "reciprocity__adjacency": "mask", "gamma": 1.0}
    learner = make(**settings)
    learner.target_critic.flat.data[..., :2] = 1.0
    next_obs = rows([3.0] * 200, [2.0] * 200)[..., None]
    target = learner.compute_target(batch(size=200, next_obs=next_obs))
    assert set(target.flatten().tolist()) == {2.0, 3.0}
    assert torch.equal(target[:, 0], target[:, 1])  # one joint state#, asked of every critic


def test_the_critic_learns_from_what_everybody_did():
    learner = make()
    learner.critic.flat.data.copy_(CRITICS)
    given = batch(
        obs=rows([1.0], [-1.0])[..., None],
        action=rows([0.5], [0.25])[..., None],
        reward=rows([4.5], [0.0]),
        terminated=torch.ones(1, 2, 1).bool(),
    )
    metrics = learner.update(given)
    # Q_0 = 1 - 2 + 1.5 + 1 + 5 = 6.5, error 2; Q_1 = -1 + 1 - .5 + 1 = .5, error .5
    torch.testing.assert_close(metrics["value/q_mean"], torch.tensor([[6.5, 0.5]]))
    torch.testing.assert_close(metrics["loss/critic"], torch.tensor([[4.0, 0.25]]))
    # 2 * error * |(1, -1, .5, .25, 1)|; the vector's square is 1 + 1 + .25 + .0625 + 1 = 3.3125
    norm = math.sqrt(3.3125)
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[4 * norm, 1 * norm]]))


def actor_case(**settings: Any) -> tuple[MADDPG, Batch]:
    """Actors play 1/2 and -1/2, but did 1 and .25; o = (1, -1)."""
    learner = make(**settings)
    learner.critic.flat.data.copy_(CRITICS)
    learner.actor.flat.data.copy_(torch.tensor([[[0.0, HALF], [0.0, -HALF]]]))
    return learner, batch(obs=rows([1.0], [-1.0])[..., None], action=rows([1.0], [0.25])[..., None])


def test_an_actor_replaces_its_own_action_and_leaves_the_others_as_they_were():
    learner, given = actor_case()
    # Q_0(a = (.5, .25)) = 1 - 2 + 1.5 + 1 + 5 = 6.5; Q_1(a = (1, -.5)) = -1 + 2 + 1 + 1 = 3
    # With both actions replaced they would be 3.5 and 2, with the wrong one 5 and .5.
    torch.testing.assert_close(learner.compute_loss_pi(given, None).detach(), rows([-6.5], [-3.0]))


def test_no_gradient_of_one_agents_loss_reaches_another_actor():
    learner, given = actor_case()
    loss = learner.compute_loss_pi(given, None)
    (gradient,) = torch.autograd.grad(loss.sum(), learner.actor.layers[0].bias)
    # own critic only: -dQ_0/da_0 (1 - .25) = -3 * .75, -dQ_1/da_1 (1 - .25) = 2 * .75
    torch.testing.assert_close(gradient.flatten(), torch.tensor([-2.25, 1.5]))


def test_action_l2_weighs_the_mean_square_of_the_output_before_the_tanh():
    learner, given = actor_case(action_l2=2.0)
    penalty = 2 * HALF**2
    torch.testing.assert_close(learner.compute_loss_pi(given, None).detach(), rows([-6.5 + penalty], [-3.0 + penalty]))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("sizes, first", [((1, 2), 9.0), ((2, 2), 12.5)])
def test_action_l2_counts_an_agents_own_components_only(discrete, sizes, first):
    """Outputs (3, 4): 9 for an agent that has the first only, (9 + 16) / 2 for one that has both."""
    learner = make(action_sizes=sizes, action_l2=1.0, discrete=discrete)
    learner.actor.layers[0].bias.data[:] = torch.tensor([3.0, 4.0])
    given = batch(width=2)
    noise = torch.zeros(1, 2, 1, 2) if discrete else None
    torch.testing.assert_close(learner.compute_loss_pi(given, noise).detach(), rows([first], [12.5]))


def test_action_l2_counts_only_what_may_be_done():
    """Agent 0 may take the first of (3, 4), agent 1 both: 9 and 12.5, and nothing of the -1e9 of what is masked."""
    learner = make(action_sizes=(2, 2), action_l2=1.0, discrete=True)
    learner.actor.layers[0].bias.data[:] = torch.tensor([3.0, 4.0])
    given = batch(width=2)._replace(avail=torch.tensor([[[[True, False]], [[True, True]]]]))
    loss = learner.compute_loss_pi(given, torch.zeros(1, 2, 1, 2)).detach()
    torch.testing.assert_close(loss, rows([9.0], [12.5]))


def test_discrete_targets_use_the_greedy_action_of_the_target_actor():
    learner = make(action_sizes=(2, 2), discrete=True)
    learner.target_actor.layers[0].bias.data[0, :, 0] = torch.tensor([[0.0, 1.0], [5.0, 1.0]])
    # inputs: o_0, o_1, a_0 = (0, 1), a_1 = (1, 0)
    learner.target_critic.layers[0].weight.data[0, :, :, 0] = torch.tensor(
        [[0.0, 0, 1, 2, 4, 8], [0.0, 0, 10, 0, 0, 0]]
    )
    # Z_0 = 2 + 4 = 6, Z_1 = 0 (agent 0 does not play action 0)
    torch.testing.assert_close(learner.compute_target(batch(width=2)), rows([3.0], [0.0]))


def test_discrete_actors_climb_by_the_straight_through_gradient():
    """Logits 0, noise 0: agent plays action 0; softmax (1/2, 1/2), so d/dl_0 of (c_0, c_1) is (c_0 - c_1) / 4."""
    learner = make(action_sizes=(2, 2), discrete=True)
    learner.critic.layers[0].weight.data[0, :, :, 0] = torch.tensor([[0.0, 0, 3, 1, 7, 0], [0.0, 0, 9, 0, 2, 10]])
    taken = torch.tensor([[[[0.0, 1.0]], [[0.0, 1.0]]]])
    loss = learner.compute_loss_pi(batch(action=taken), torch.zeros(1, 2, 1, 2))
    # Q_0 = 3 (own, action 0) + 0 (the other took action 1); Q_1 = 0 + 2
    torch.testing.assert_close(loss.detach(), rows([-3.0], [-2.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), learner.actor.layers[0].bias)
    # -(3 - 1) / 4 and +; -(2 - 10) / 4 and -
    torch.testing.assert_close(gradient[0, :, 0], torch.tensor([[-0.5, 0.5], [2.0, -2.0]]))


def test_an_action_that_an_agent_does_not_have_is_never_played_targeted_or_learnt():
    learner = make(action_sizes=(2, 3), discrete=True)
    last = learner.actor.layers[0].bias
    for stack in (learner.actor, learner.target_actor):
        stack.layers[0].bias.data[:] = torch.tensor([0.0, 0.0, 50.0])  # padding of agent 0, an action of agent 1
    obs = torch.zeros(1, 2, 300, 1)
    for explore in (False, True):
        action = learner.act(View(obs), explore).action
        assert action[0, 0].max() <= 1 and (action[0, 1] == 2).all()
    assert set(action[0, 0].tolist()) == {0, 1}  # its own two are explored
    learner.target_critic.layers[0].weight.data[0, 0, 4] = 100.0  # agent 0's third action; inputs o_0 o_1 a_0 a_1
    assert learner.compute_target(batch(width=3))[0, 0, 0] == 0.0
    learner.critic.layers[0].weight.data[:] = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 2, 1, 3, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(learner.compute_loss_pi(batch(width=3), noise).sum(), last)
    assert gradient[0, 0, 0, 2] == 0.0 and (gradient[0, 0, 0, :2] != 0).all()


def test_exploration_leaves_missing_components_alone():
    learner = make(action_sizes=(1, 2), epsilon=0.5)
    action = learner.act(View(torch.zeros(1, 2, 50, 1)), explore=True).action
    assert (action[0, 0, :, 1] == 0).all() and (action[0, 1] != 0).all()
    action = make(action_sizes=(1, 2), epsilon=0.0, noise=0.0).act(View(torch.zeros(1, 2, 50, 1)), explore=True).action
    assert (action == 0).all()


def test_a_shared_pair_of_networks_gets_the_sum_of_the_agents_gradients():
    """One critic (o_me, o_other, a_me, a_other, 1): rows (1, 3, 0, 0, 1) and (3, 1, 0, 0, 1), errors -2 and -4."""
    learner = make(shared=True)
    given = batch(obs=rows([1.0], [3.0])[..., None], reward=rows([2.0], [4.0]), terminated=torch.ones(1, 2, 1).bool())
    metrics = learner.update(given)
    torch.testing.assert_close(metrics["loss/critic"], torch.tensor([[4.0, 16.0]]))
    # 2 * -2 * (1, 3, 0, 0, 1) + 2 * -4 * (3, 1, 0, 0, 1) = -(28, 20, 0, 0, 12): norm sqrt(784 + 400 + 144)
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.full((1, 2), math.sqrt(1328)))
    assert learner.critic.flat.data.shape == (1, 1, 5) and learner.actor.flat.data.shape == (1, 1, 2)
    # Adam's first step: .1 where there was a gradient
    torch.testing.assert_close(learner.critic.flat.data.flatten(), torch.tensor([0.1, 0.1, 0.0, 0.0, 0.1]))


def test_shared_agents_of_the_same_observation_act_alike_and_their_critics_tell_them_apart():
    learner = make(obs_sizes=(1, 1, 1), action_sizes=(1, 1, 1), shared=True)
    learner.actor.flat.data.fill_(0.5)
    action = learner.act(View(torch.ones(1, 3, 1, 1)), explore=False).action
    assert action.unique().numel() == 1
    learner.target_critic.layers[0].weight.data[0, 0, 0] = 1.0  # reads the first observation: the critic's own agent
    target = learner.compute_target(batch(agents=3, next_obs=rows([2.0], [4.0], [6.0])[..., None]))
    assert target.flatten().tolist() == [1.0, 2.0, 3.0]  # .5 * o_i


def test_a_team_reward_gives_every_critic_the_same_target_from_equal_weights():
    learner, given = two_agents()
    learner.target_critic.flat.data.copy_(CRITICS[:, :1].expand(1, 2, 5))
    target = learner.compute_target(given._replace(reward=rows([3.0], [3.0])))
    torch.testing.assert_close(target, rows([8.75], [8.75]))  # 3 + .5 * 11.5
