"""MAPTF in numbers that a reader can check in the head: whom an agent imitates, how much, and with which gradient.

With ``hidden=()`` and observations of width 1 an actor is ``weight o + bias``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.maddpg import MADDPG, MADDPGConfig
from marl.algos.mappo import MAPPO
from marl.algos.maptf import MAPTF
from marl.algos.maptf_mappo import MAPTFMAPPO, OptionRollout
from marl.config import replace
from marl.envs.base import EnvSpec, Step
from marl.types import Acted, Batch, Trajectory, UserError, View

HALF = math.atanh(0.5)
FULL = 0.5 + 0.5 * math.tanh(3)  # f(0)


def make(
    kind: Any = MAPTF,
    obs_sizes: tuple[int, ...] = (1, 1),
    action_sizes: tuple[int, ...] = (1, 1),
    discrete: bool = False,
    blank: bool = True,
    **settings: Any,
) -> Any:
    """The imitation counts in full; ``blank``: actors and critics are all zero."""
    common = {"hidden": (), "gamma": 0.5, "actor_lr": 0.1, "options__weight": 1.0}
    own = {"action_l2": 0.0, "tau": 0.0} if kind is MAPTF else {"entropy": 0.0, "epochs": 1}
    config = kind.Config()
    for name, value in {**common, **own, **settings}.items():
        config = replace(config, name.replace("__", "."), value)
    spec = EnvSpec("test/line", tuple("abc"[: len(obs_sizes)]), obs_sizes, action_sizes, discrete)
    learner = kind(spec, [config], [0])
    for name in ("actor", "critic", "target_actor", "target_critic") if blank else ():
        if hasattr(learner.base, name):
            getattr(learner.base, name).flat.data.zero_()
    return learner


def set_biases(learner: Any, biases: list[list[float]]) -> None:
    actor = learner.base.actor
    net = actor if hasattr(actor, "layers") else actor.net
    net.layers[-1].bias.data.copy_(torch.tensor(biases).view(1, len(biases), 1, -1))


def batch(options: list[float], size: int = 1, width: int = 1, action: Tensor | None = None) -> Batch:
    """All zero but what each agent had noted."""
    n = len(options)
    obs, zero = torch.zeros(1, n, size, width), torch.zeros(1, n, size)
    memory = torch.tensor(options).view(1, n, 1, 1).expand(-1, -1, size, -1).clone()
    done = torch.zeros(1, n, size, 1) if action is None else action
    return Batch(obs, done, zero, obs.clone(), zero.bool(), memory=memory)


def test_an_agents_loss_is_the_weighted_mean_square_of_how_its_action_differs():
    learner = make()
    set_biases(learner, [[HALF], [-HALF]])
    metrics = learner.update(batch([2.0, 2.0]))  # agent 0 imitates agent 1, agent 1 itself: (1/2 + 1/2)^2 and 0
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([[FULL, 0.0]]))
    torch.testing.assert_close(metrics["loss/actor"], torch.tensor([[FULL, 0.0]]))
    torch.testing.assert_close(metrics["option/own"], torch.tensor([[0.0, 1.0]]))
    # d/du (tanh u - t)^2 = 2 * 1 * (1 - 1/4) = 1.5 for the imitator, nothing for the imitated
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.tensor([[1.5 * FULL, 0.0]]))


def test_a_discrete_agent_pays_the_cross_entropy_to_the_policy_that_it_imitates():
    learner = make(action_sizes=(2, 2), discrete=True)
    set_biases(learner, [[0.0, 0.0], [math.log(3), 0.0]])  # odds 1 : 1 and 3 : 1
    metrics = learner.update(batch([2.0, 1.0], action=torch.zeros(1, 2, 1, dtype=torch.int64)))
    # -3/4 log 1/2 - 1/4 log 1/2 = log 2, and -1/2 log 3/4 - 1/2 log 1/4
    expected = [math.log(2), -math.log(3 / 16) / 2]
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([expected]) * FULL)
    # the gradient in the logits is p_i - p_o = -+1/4 twice: |.| = sqrt(1/8)
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.full((1, 2), FULL / math.sqrt(8)))


@pytest.mark.parametrize("discrete", [False, True])
def test_the_imitator_comes_to_act_as_the_imitated_who_does_not_move(discrete):
    """The fault of the authors' code, a divergence without gradient, would leave both where they are."""
    learner = make(action_sizes=(2, 2) if discrete else (1, 1), discrete=discrete, critic_lr=1e-9)
    set_biases(learner, [[0.0, 0.0], [1.0, -1.0]] if discrete else [[0.0], [1.0]])
    before = learner.base.actor.flat.data.clone()
    action = torch.zeros(1, 2, 1, dtype=torch.int64) if discrete else None
    given = batch([2.0, 2.0], action=action)
    for _ in range(100):
        learner.update(given)
    after = learner.base.actor.flat.data
    torch.testing.assert_close(after[0, 1], before[0, 1], atol=1e-4, rtol=0)
    difference = torch.tanh(after) if not discrete else torch.softmax(learner.base.actor(given.obs), -1)
    torch.testing.assert_close(difference[0, 0], difference[0, 1], atol=0.02, rtol=0)


@pytest.mark.parametrize("discrete", [False, True])
def test_an_agent_that_imitates_nobody_learns_as_maddpg_does_bit_for_bit(discrete):
    sizes = {"obs_sizes": (2, 3), "action_sizes": (2, 3), "discrete": discrete}
    learner = make(**sizes, hidden=(8,), blank=False)
    spec = EnvSpec("test/line", ("a", "b"), (2, 3), (2, 3), discrete)
    alone = MADDPG(spec, [MADDPGConfig(hidden=(8,), gamma=0.5, actor_lr=0.1, action_l2=0.0, tau=0.0)], [0])
    alone.load_state_dict(learner.base.state_dict())
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(1, 2, 40, 3, generator=generator) * spec.obs_mask[:, None]
    action = torch.randint(2, (1, 2, 40), generator=generator) if discrete else torch.zeros(1, 2, 40, 3)
    reward = torch.randn(1, 2, 40, generator=generator)
    for options, same in (([0.0, 0.0], True), ([1.0, 2.0], True), ([1.0, 1.0], False)):
        given = batch(options, 40, 3, action)._replace(obs=obs, reward=reward)
        learner.update(given)
        alone.update(given)
        assert torch.equal(learner.base.actor.flat.data, alone.actor.flat.data) == same
        assert torch.equal(learner.base.critic.flat.data, alone.critic.flat.data)


def test_imitation_can_be_weighed_by_the_chance_that_the_option_goes_on():
    """The fault of the authors' code: (1 - beta) is accepted and not used."""
    losses = []
    for staying in (False, True):
        learner = make(options__staying=staying)
        set_biases(learner, [[HALF], [-HALF]])
        heads = learner.options.nets["termination_heads"]
        heads.flat.data.zero_()
        heads.layers[-1].bias.data.fill_(math.log(3))  # beta = 3/4
        losses.append(learner.update(batch([2.0, 1.0]))["loss/imitation"])
    torch.testing.assert_close(losses[1], losses[0] / 4)


def test_a_teacher_of_another_size_reads_what_it_was_taught_and_is_followed_in_what_both_have():
    """Agent 1 has one observation and one component: its answer to agent 0's (5, 7) is that to 5."""
    learner = make(obs_sizes=(2, 1), action_sizes=(2, 1))
    weight = learner.base.actor.layers[0].weight.data  # [P, N, in, out]
    weight[0, 1] = torch.tensor([[0.1, 0.2], [100.0, 100.0]])
    obs = torch.tensor([[[[5.0, 7.0]], [[1.0, 0.0]]]])
    answers, common = learner.everybodys_answers(obs, None)
    torch.testing.assert_close(answers[0, 0, 1, 0], torch.tanh(torch.tensor([0.5, 1.0])))
    assert common[0, :, :, 0].tolist() == [[[True, True], [True, False]], [[True, False], [True, False]]]
    loss = learner.mismatch(torch.zeros(1, 2, 1, 2), answers[:, :, 1], common[:, :, 1])
    torch.testing.assert_close(loss[0, 0, 0], torch.tensor(math.tanh(0.5) ** 2))


def test_an_agent_that_may_do_nothing_that_its_teacher_can_is_left_alone():
    learner = make(action_sizes=(3, 2), discrete=True)
    avail = torch.tensor([[[[False, False, True]], [[True, True, False]]]])
    answers, common = learner.everybodys_answers(torch.zeros(1, 2, 1, 1), avail)
    output = learner.base.actor_output(learner.base.actor, torch.zeros(1, 2, 1, 1), avail)
    loss = learner.mismatch(output, answers[:, :, 1], common[:, :, 1])
    assert loss[0, 0, 0] == 0
    torch.testing.assert_close(loss[0, 1, 0], torch.tensor(math.log(2)))
    assert torch.autograd.grad(loss.sum(), learner.base.actor.layers[0].bias)[0].isfinite().all()


@pytest.mark.parametrize("kind", [MAPTF, MAPTFMAPPO])
def test_the_agents_own_policy_acts_and_what_is_noted_is_the_option_of_that_step(kind):
    learner = make(kind, discrete=True, action_sizes=(2, 2))
    set_biases(learner, [[50.0, 0.0], [0.0, 50.0]])
    view = View(torch.zeros(1, 2, 30, 1), memory=torch.zeros(1, 2, 30, 1))
    acted = learner.act(view, explore=True)
    assert (acted.action == torch.tensor([0, 1])[:, None]).all()
    assert acted.memory is not None and set(acted.memory.flatten().tolist()) == {1.0, 2.0}
    assert learner.options.episodes.tolist() == [[30, 30]]
    played = learner.act(view, explore=False)
    assert played.memory is not None and torch.equal(played.memory, torch.zeros(1, 2, 30, 1))
    assert learner.options.episodes.tolist() == [[30, 30]]


def test_networks_that_cannot_be_imitated_are_refused():
    with pytest.raises(UserError, match=r"maptf needs .* shared=true; choose shared=false"):
        make(shared=True)
    for name in ("shared", "recurrent"):
        with pytest.raises(UserError, match=f"maptf-mappo .* {name}=true; choose {name}=false"):
            make(MAPTFMAPPO, **{name: True})


def trajectory(options: list[float], discrete: bool, steps: int = 2) -> Trajectory:
    n, grid = len(options), (1, len(options), steps, 1)
    obs, no = torch.zeros(*grid, 1), torch.zeros(grid, dtype=torch.bool)
    action = torch.zeros(grid, dtype=torch.int64) if discrete else torch.zeros(*grid, 1)
    memory = torch.tensor(options).view(1, n, 1, 1, 1).expand(*grid, 1).clone()
    return Trajectory(obs, action, torch.zeros(grid), obs.clone(), no, no, ~no, memory=memory)


def test_on_mappo_a_discrete_agent_pays_the_cross_entropy_and_only_the_imitator_moves():
    learner = make(MAPTFMAPPO, action_sizes=(2, 2), discrete=True, max_grad_norm=None)
    set_biases(learner, [[0.0, 0.0], [math.log(3), 0.0]])
    metrics = learner.update(trajectory([2.0, 2.0], True))
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([[math.log(2) * FULL, 0.0]]))
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.tensor([[FULL / math.sqrt(8), 0.0]]))


def test_on_mappo_a_continuous_agent_pays_the_cross_entropy_of_the_normal_distributions():
    """log sigma_i + (sigma_o^2 + (mu_i - mu_o)^2) / (2 sigma_i^2): sigma_i = 2, sigma_o = 1, means 0 and 3."""
    learner = make(MAPTFMAPPO, max_grad_norm=None)
    set_biases(learner, [[0.0], [3.0]])
    learner.base.actor.log_std.data[0, :, 0, 0, 0] = torch.tensor([math.log(2), 0.0])
    metrics = learner.update(trajectory([2.0, 2.0], False))
    expected = math.log(2) + (1 + 9) / 8
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([[expected * FULL, 0.0]]))
    # in the mean -3/4, in log sigma 1 - 10/4 = -3/2; the surrogate's advantages are 0
    norm = math.hypot(0.75, 1.5) * FULL
    torch.testing.assert_close(metrics["grad/actor_norm"], torch.tensor([[norm, 0.0]]))


def test_on_mappo_what_is_imitated_does_not_move_with_the_imitated():
    learner = make(MAPTFMAPPO, action_sizes=(2, 2), discrete=True)
    set_biases(learner, [[0.0, 0.0], [math.log(3), 0.0]])
    option = torch.tensor([[[1], [1]]])
    answers, _ = learner.everybodys_answers(torch.zeros(1, 2, 1, 1), None)
    note = learner.lesson(answers[:, :, 1], torch.ones(1, 2, 1, 2), option)
    torch.testing.assert_close(note[0, 0, 0], torch.tensor([0.75, 0.25]))
    assert not note.requires_grad


def test_on_mappo_an_agent_that_imitates_nobody_learns_as_mappo_does_bit_for_bit():
    for options, same in (([1.0, 2.0], True), ([2.0, 2.0], False)):
        learner = make(MAPTFMAPPO, hidden=(8,), epochs=3, blank=False)
        alone = MAPPO(EnvSpec("test/line", ("a", "b"), (1, 1), (1, 1), False), [learner.config], [0])
        alone.load_state_dict(learner.base.state_dict())
        given = trajectory(options, False)
        given = given._replace(obs=given.obs + 1, reward=torch.tensor([[[[1.0], [2.0]], [[3.0], [1.0]]]]))
        learner.update(given)
        alone.update(given._replace(memory=None))
        assert torch.equal(learner.base.actor.flat.data, alone.actor.flat.data) == same
        assert torch.equal(learner.base.critic.flat.data, alone.critic.flat.data)


def test_a_rollout_of_options_holds_the_one_in_use_at_each_step():
    spec = EnvSpec("test/line", ("a",), (1,), (1,), False)
    rollout = OptionRollout(1, spec, members=1, copies=1, memory_size=1)
    x, no = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.bool)
    rollout.add(View(x, memory=x), Acted(x, x + 1), Step(x, x, torch.zeros(1, 1, 1), no, no))
    drawn = rollout.draw()
    assert drawn.memory is not None and drawn.memory.item() == 1.0


def test_rows_that_do_not_count_are_left_out_of_the_imitation_that_is_shown():
    learner = make(MAPTFMAPPO, action_sizes=(2, 2), discrete=True)
    given = trajectory([2.0, 2.0], True)
    given.valid[:, :, 1] = False
    metrics = learner.update(given)
    torch.testing.assert_close(metrics["loss/imitation"], torch.tensor([[math.log(2) * FULL, 0.0]]))
