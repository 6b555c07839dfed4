"""DVM in numbers that a reader can check in the head: what is distilled, matched and handed out, and when.

With ``hidden=()`` and two agents of width 1, a critic is linear in ``(o_0, o_1, a_0, a_1)`` and a bias.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.dvm import DVM, DVMConfig
from marl.config import replace
from marl.envs.base import EnvSpec
from marl.types import Batch, UserError, View

HALF = math.atanh(0.5)


def make(agents: int = 2, size: int = 1, discrete: bool = False, sizes: Any = None, **settings: Any) -> DVM:
    config = DVMConfig(hidden=(), distil_lr=0.05, cycle_train=1, cycle_distil=400)
    for name, value in settings.items():
        config = replace(config, name, value)
    obs, action = sizes or ((size,) * agents, (size,) * agents)
    return DVM(EnvSpec("test/line", tuple("abcd"[:agents]), obs, action, discrete), [config], [0])


def batch(seed: int, agents: int = 2, rows: int = 32, discrete: bool = False, size: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(1, agents, rows, size, generator=generator)
    action = 2 * torch.rand(1, agents, rows, size, generator=generator) - 1
    zero = torch.zeros(1, agents, rows)
    return Batch(obs, action.argmax(-1) if discrete else action, zero, obs, zero.bool())


def critics(learner: DVM, *weights: list[float]) -> None:
    learner.base.critic.flat.data.copy_(torch.tensor([weights]))


def cycle(learner: DVM, first: int = 1) -> None:
    """All updates of the distilling phase, the last of which hands out; the agents are as they were before it."""
    learner.updates = learner.config.cycle_train
    for k in range(learner.config.cycle_distil):
        learner.update(batch(first + k))


MIRRORED = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0]
"""Q_0 = o_0 + 2 o_1 + 3 a_0 + 4 a_1 + 5, and Q_1 the same with the agents exchanged: each is 1 own + 2 other + ..."""


def test_after_matching_the_critics_of_a_symmetric_task_agree_and_are_what_they_were():
    learner = make()
    critics(learner, *MIRRORED)
    cycle(learner)
    found = learner.base.critic.flat.data[0]
    torch.testing.assert_close(found, torch.tensor(MIRRORED), atol=0.02, rtol=0)
    assert torch.equal(found[0], found[1, [1, 0, 3, 2, 4]])  # one function, seen from both places


def test_critics_that_contradict_each_other_meet_in_the_middle():
    """From each agent's own place they say 1 own + 2 other + ... and 3 own + 6 other + ...: the mean is 2, 4, 6, 8."""
    learner = make()
    critics(learner, [1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 3.0, 12.0, 9.0, -5.0])
    cycle(learner)
    expected = torch.tensor([[2.0, 4.0, 6.0, 8.0, 0.0], [4.0, 2.0, 8.0, 6.0, 0.0]])
    # the two sets of residuals do not cancel in every batch: Adam's last steps leave some per cent
    torch.testing.assert_close(learner.base.critic.flat.data[0], expected, atol=0.5, rtol=0)


def test_without_the_permutation_even_mirrored_critics_lose_who_is_who():
    learner = make(permute=False)
    critics(learner, *MIRRORED)
    cycle(learner)
    expected = torch.tensor([[1.5, 1.5, 3.5, 3.5, 5.0]] * 2)
    torch.testing.assert_close(learner.base.critic.flat.data[0], expected, atol=0.2, rtol=0)


def test_what_is_handed_out_answers_as_the_distilled_critic_does_with_that_agent_first():
    """Three agents of two numbers each, hidden layers: the exchange is folded into the first layer's rows."""
    learner = make(agents=3, size=2, hidden=(8,))
    given = batch(0, agents=3, size=2)

    def asked(i: int) -> Tensor:
        order = list(range(3))
        order[0], order[i] = i, 0
        parts = [given.obs[:, k] for k in order] + [given.action[:, k] for k in order]
        return learner.distilled_critic(torch.cat(parts, dim=-1).unsqueeze(1))[:, 0]

    expected = torch.stack([asked(i) for i in range(3)], dim=1)
    learner.hand_out()
    everything = torch.cat([*given.obs.unbind(1), *given.action.unbind(1)], dim=-1)
    found = learner.base.critic(everything.unsqueeze(1).expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_everything_is_handed_out_and_nothing_of_the_past_is_kept():
    learner = make(hidden=(8,), cycle_train=2, cycle_distil=2)
    base = learner.base
    for k in range(3):
        learner.update(batch(k))
    assert base.actor_optimizer.state_dict() and learner.distilled_critic_optimizer.state_dict()
    assert not torch.equal(base.actor.flat.data[:, 0], base.actor.flat.data[:, 1])
    learner.update(batch(3))
    assert torch.equal(base.actor.flat.data, learner.distilled_actor.flat.data.expand_as(base.actor.flat.data))
    assert torch.equal(base.target_actor.flat.data, base.actor.flat.data)
    assert torch.equal(base.target_critic.flat.data, base.critic.flat.data)
    for optimizer in (base.actor_optimizer, base.critic_optimizer):
        assert optimizer.state_dict() == {}
    assert learner.distilled_actor_optimizer.state_dict() == learner.distilled_critic_optimizer.state_dict() == {}
    obs = batch(4).obs[:, :1].expand(-1, 2, -1, -1)
    action = learner.act(View(obs), explore=False).action
    assert torch.equal(action[:, 0], action[:, 1])  # copies do the same where they see the same
    for k in (5, 6):  # and go their own ways again (Adam's first step sees signs alone)
        learner.update(batch(k))
    assert not torch.equal(base.actor.flat.data[:, 0], base.actor.flat.data[:, 1])


def test_agents_learn_and_are_distilled_in_turns():
    learner = make(hidden=(8,), cycle_train=3, cycle_distil=2)
    turns = []
    for k in range(10):
        before = learner.base.actor.flat.data.clone(), learner.distilled_actor.flat.data.clone()
        names = set(learner.update(batch(k)))
        moved = [
            not torch.equal(a, b.flat.data)
            for a, b in zip(before, (learner.base.actor, learner.distilled_actor), strict=True)
        ]
        distils = names == {"distil/policy", "distil/value"}
        assert moved[1] == distils and (moved[0] != distils or k % 5 == 4)  # handed out at the end of a cycle
        turns.append(distils)
    assert turns == [False, False, False, True, True] * 2


def test_the_policy_that_is_distilled_is_a_compromise_between_the_agents():
    """Actions 1/2 and -1/2 everywhere: half the squared distance to both is least at 0, and is 1/8 for each."""
    learner = make()
    learner.base.actor.flat.data.copy_(torch.tensor([[[0.0, HALF], [0.0, -HALF]]]))
    learner.distilled_actor.flat.data.copy_(torch.tensor([[[0.0, HALF]]]))
    first = learner.distil(batch(0))["distil/policy"]
    torch.testing.assert_close(first, torch.tensor([[0.0, 0.5]]))  # (1/2 + 1/2)^2 / 2
    for k in range(200):
        last = learner.distil(batch(k))["distil/policy"]
    torch.testing.assert_close(last, torch.full((1, 2), 0.125), atol=0.02, rtol=0)


def test_discrete_policies_are_distilled_by_their_divergence():
    """KL of odds 3 : 1 from even ones: 3/4 log(3/2) + 1/4 log(1/2); nothing where they are equal."""
    learner = make(size=2, discrete=True)
    learner.base.actor.flat.data.zero_()
    learner.base.actor.layers[0].bias.data[0, 0, 0, 0] = math.log(3)
    learner.distilled_actor.flat.data.zero_()
    found = learner.distil(batch(0, discrete=True, size=2))["distil/policy"]
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(found, torch.tensor([[expected, 0.0]]))
    for k in range(300):
        learner.distil(batch(k, discrete=True, size=2))
    # the mean of both policies, 5/8 : 3/8, is what minimises the sum of the divergences from them
    odds = torch.softmax(learner.distilled_actor(torch.zeros(1, 1, 1, 2)), -1).flatten()
    torch.testing.assert_close(odds, torch.tensor([0.625, 0.375]), atol=0.02, rtol=0)


def test_agents_of_different_sizes_and_shared_networks_are_refused():
    with pytest.raises(UserError, match="dvm needs agents of equal sizes, test/line has observations of 1, 2"):
        make(sizes=((1, 2), (1, 1)))
    with pytest.raises(UserError, match="dvm needs agents of equal sizes, test/line has actions of 3, 2"):
        make(sizes=((1, 1), (3, 2)))
    with pytest.raises(UserError, match=r"dvm needs .* shared=true; choose shared=false"):
        make(shared=True)
