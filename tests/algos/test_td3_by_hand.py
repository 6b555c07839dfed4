"""TD3 in numbers that a reader can check in the head: what it adds to DDPG.

With ``hidden=()`` head k of agent i is ``Q_ik = w_s s + w_a a + b`` and the actor ``tanh(v s + c)``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.td3 import TD3, TD3Config
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.types import Batch, UserError, View


def make(agents: int = 1, **settings: Any) -> TD3:
    """Weights are all zero."""
    config = TD3Config(hidden=(), gamma=0.5, actor_lr=0.1, critic_lr=0.1)
    for name, value in settings.items():
        config = replace(config, name.replace("__", "."), value)
    learner = TD3(EnvSpec("test/line", tuple("abc"[:agents]), (1,) * agents, (1,) * agents, False), [config], [0])
    for stack in (learner.actor, learner.critic, learner.target_actor, learner.target_critic):
        stack.flat.data.zero_()
    return learner


def heads(*numbers: list[float]) -> Tensor:
    """One ``(w_s, w_a, b)`` for each head: agent 0's two, then agent 1's two."""
    return torch.tensor([numbers])


def rows(*per_agent: list[float]) -> Tensor:
    return torch.tensor([per_agent])


def batch(agents: int = 1, size: int = 1, **changes: Any) -> Batch:
    zero = torch.zeros(1, agents, size)
    return Batch(zero[..., None], zero[..., None], zero, zero[..., None], zero.bool())._replace(**changes)


def silence(given: Batch) -> Tensor:
    """Smoothing noise of zero."""
    return torch.zeros_like(given.action)


def test_the_target_takes_the_smaller_twin_row_by_row():
    learner = make()
    learner.target_critic.flat.data.copy_(heads([2.0, 0.0, 0.0], [0.0, 0.0, 3.0]))
    given = batch(size=2, reward=rows([1.0, 1.0]), next_obs=rows([1.0, 2.0])[..., None])
    # twins 2 s' = 2, 4 and the constant 3: smaller 2, 3; 1 + .5 * (2, 3)
    torch.testing.assert_close(learner.compute_target(given, silence(given)), rows([2.0, 2.5]))


def test_each_twin_is_blended_then_the_minimum_is_taken():
    """The order matters: agent 0's twins say 10 and 0, agent 1's 0 and 10.

    Blended first, at kappa 1/2, each twin says 5 and so does the minimum. The minima first are 0, and so is their
    blend.
    """
    learner = make(agents=2, reciprocity__kappa=0.5, reciprocity__adjacency="exact", gamma=1.0)
    learner.target_critic.flat.data[..., 2] = torch.tensor([[10.0, 0.0, 0.0, 10.0]])
    given = batch(agents=2)
    torch.testing.assert_close(learner.compute_target(given, silence(given)), rows([5.0], [5.0]))
    twins = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    minimum_first = 0.5 * twins.amin(-1) + 0.5 * twins.amin(-1).flip(0)
    assert minimum_first.tolist() == [0.0, 0.0]


def test_the_target_action_is_smoothed_by_clipped_noise_and_clipped_again():
    """Q = a in both heads, gamma 1: the target is the smoothed action. Noise .2 z is cut at +-.5."""
    learner = make(gamma=1.0)
    learner.target_critic.flat.data[..., 1] = 1.0
    learner.target_actor.flat.data[..., 1] = math.atanh(0.8)
    given = batch(size=4)
    noise = torch.tensor([1.0, 10.0, -1.0, -10.0]).view(1, 1, 4, 1)
    # .8 + .2 = 1; .8 + .5 = 1.3 -> 1; .8 - .2 = .6; .8 - .5 = .3 (uncut it would be -1)
    torch.testing.assert_close(learner.compute_target(given, noise), rows([1.0, 1.0, 0.6, 0.3]))


def test_members_may_differ_in_the_noise_and_in_its_limit():
    base = TD3Config(hidden=(), gamma=1.0)
    configs = [base, replace(base, "target_noise", 0.1), replace(base, "target_noise_clip", 0.1)]
    learner = TD3(EnvSpec("test/line", ("a",), (1,), (1,), False), configs, [0, 1, 2])
    learner.target_actor.flat.data.zero_()
    learner.target_critic.flat.data.zero_()
    learner.target_critic.flat.data[..., 1] = 1.0
    zero = torch.zeros(3, 1, 1)
    given = Batch(zero[..., None], zero[..., None], zero, zero[..., None], zero.bool())
    # z = 2: .2 * 2 = .4; .1 * 2 = .2; .4 cut at .1
    target = learner.compute_target(given, torch.full((3, 1, 1, 1), 2.0))
    torch.testing.assert_close(target.flatten(), torch.tensor([0.4, 0.2, 0.1]))


def test_noise_is_drawn_anew_for_each_row_agent_and_update_from_its_own_stream():
    learner, given = make(agents=2, critic_lr=0.0), batch(agents=2, size=3)
    learner.target_critic.flat.data[..., 1] = 1.0
    noise = make(agents=2).smoothing
    for _ in range(2):
        expected = 0.5 * (0.2 * noise.normal(2, 3, 1)).clamp(-0.5, 0.5).squeeze(-1).mean(-1)
        torch.testing.assert_close(learner.update(given)["value/target_mean"], expected)
        learner.target_critic.flat.data.zero_()
        learner.target_critic.flat.data[..., 1] = 1.0


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actors_and_targets_move_at_every_delayed_update_only(delay):
    learner = make(policy_delay=delay, tau=0.5)
    learner.critic.flat.data[..., 1] = 1.0
    stacks = (learner.critic, learner.actor, learner.target_actor, learner.target_critic)
    given = batch(obs=rows([1.0])[..., None], reward=rows([7.0]))
    for update in range(1, 7):
        before = [stack.flat.data.clone() for stack in stacks]
        metrics = learner.update(given)
        moved = [not torch.equal(old, stack.flat.data) for old, stack in zip(before, stacks, strict=True)]
        assert moved == [True] + [update % delay == 0] * 3
        assert ("loss/actor" in metrics) == (update >= delay)


def test_the_actor_climbs_the_first_twin():
    """Q_1 = 2 a, Q_2 = -9 a: the actor goes up, and its loss does not know the second twin."""
    learner = make(agents=2)
    learner.critic.flat.data.copy_(heads([0.0, 2.0, 1.0], [0.0, -9.0, 5.0], [0.0, -3.0, 0.0], [0.0, 9.0, 5.0]))
    learner.actor.flat.data[..., 1] = math.atanh(0.5)
    loss = learner.compute_loss_pi(batch(agents=2))
    # -(2 * .5 + 1), -(-3 * .5)
    torch.testing.assert_close(loss.detach(), rows([-2.0], [1.5]))
    (gradient,) = torch.autograd.grad(loss.sum(), learner.actor.layers[0].bias)
    # -dQ/da (1 - .25): -2 * .75 and 3 * .75
    torch.testing.assert_close(gradient.flatten(), torch.tensor([-1.5, 2.25]))


def test_both_twins_learn_from_one_target_and_the_loss_is_their_sum():
    learner = make()
    learner.critic.flat.data[..., 2] = torch.tensor([[1.0, 2.0]])
    given = batch(obs=rows([2.0])[..., None], reward=rows([4.0]), terminated=torch.ones(1, 1, 1).bool())
    metrics = learner.update(given)
    # errors 1 - 4 = -3 and 2 - 4 = -2: 9 + 4; gradients 2 (-3) (s = 2, a = 0, 1) and 2 (-2) (2, 0, 1)
    torch.testing.assert_close(metrics["loss/critic"], torch.tensor([[13.0]]))
    torch.testing.assert_close(metrics["value/q_mean"], torch.tensor([[1.5]]))
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[6 * math.sqrt(5)]]))  # the larger twin's
    # Adam's first step, rate .1, against the sign; the action was 0
    torch.testing.assert_close(learner.critic.flat.data, heads([0.1, 0.0, 1.1], [0.1, 0.0, 2.1]))


def test_targets_follow_by_tau_once_per_delayed_update():
    learner = make(tau=0.25, critic_lr=0.0, actor_lr=0.0)
    learner.target_critic.flat.data.fill_(4.0)
    learner.target_actor.flat.data.fill_(8.0)
    for critic, actor in ((4.0, 8.0), (3.0, 6.0), (3.0, 6.0), (2.25, 4.5)):  # * 3/4 at every second update
        learner.update(batch())
        assert (learner.target_critic.flat.data == critic).all() and (learner.target_actor.flat.data == actor).all()


def test_smoothing_does_not_reach_what_an_agent_does_not_have():
    spec = EnvSpec("test/hetero", ("a", "b"), (1, 2), (1, 2), False)
    learner = TD3(spec, [TD3Config(hidden=(), gamma=1.0)], [0])
    learner.target_critic.flat.data.fill_(1.0)  # reads everything, padding too
    learner.target_actor.flat.data.zero_()
    zero = torch.zeros(1, 2, 1)
    given = Batch(zero[..., None].expand(1, 2, 1, 2), torch.zeros(1, 2, 1, 2), zero, torch.zeros(1, 2, 1, 2), zero > 0)
    # agent 0: bias 1 + .2; agent 1: 1 + .2 + .2
    target = learner.compute_target(given, torch.ones(1, 2, 1, 2))
    torch.testing.assert_close(target.flatten(), torch.tensor([1.2, 1.4]))
    explored = learner.act(View(torch.zeros(1, 2, 3, 2)), explore=True).action
    assert (explored[0, 0, :, 1] == 0).all() and (explored[0, 1] != 0).all()


def test_the_twins_of_an_agent_differ_from_the_start():
    learner = TD3(EnvSpec("test/line", ("a", "b"), (3, 3), (1, 1), False), [TD3Config(hidden=(8,))], [0])
    both = learner.critic(torch.ones(1, 2, 5, 4))
    assert both.shape == (1, 2, 5, 2) and (both[..., 0] != both[..., 1]).all()


def test_discrete_actions_are_refused():
    with pytest.raises(UserError, match="td3 needs continuous actions"):
        TD3(EnvSpec("test/line", ("a",), (1,), (3,), True), [TD3Config()], [0])
