"""DQN: targets and updates in numbers that a reader can check in the head, probes, pictures, and CartPole.

With ``hidden=()`` and one-hot observations a network is a table: row s of its weights holds Q(s, .).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from marl.algos.common import following
from marl.algos.dqn import DQN, DQNConfig
from marl.config import replace
from marl.envs import make_env
from marl.envs.base import EnvSpec, VectorEnv
from marl.envs.probes import PROBES, Probe
from marl.loop import random_actions
from marl.modules.q_values import QNetwork
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, UserError, View


def config(**changes: Any) -> DQNConfig:
    made = DQNConfig()
    for name, value in changes.items():
        made = replace(made, name.replace("__", "."), value)
    return made


# ---- by hand ------------------------------------------------------------------------------------------------------


def make(agents: int = 1, **changes: Any) -> DQN:
    """Two states, three actions, all Q = 0; gamma 1/2."""
    spec = EnvSpec("test/table", tuple("abc"[:agents]), (2,) * agents, (3,) * agents, True)
    learner = DQN(spec, [config(**{"hidden": (), "gamma": 0.5, "lr": 0.1, **changes})], [0])
    for network in (learner.critic, learner.target_critic):
        network.flat.data.zero_()
    return learner


def put(network: QNetwork, agent: int, *table: list[float]) -> None:
    """Q(0, .) and Q(1, .)."""
    network.layers[0].get_parameter("weight").data[0, agent] = torch.tensor(table)


def state(*numbers: int) -> Tensor:
    """One-hot, ``[..., 2]``."""
    return torch.eye(2)[torch.tensor(numbers)]


def one(**changes: Any) -> Batch:
    """One agent, one row: in state 0 action 1 earned 1 and led to state 1."""
    given = Batch(
        obs=state(0).view(1, 1, 1, 2),
        action=torch.tensor([[[1]]]),
        reward=torch.tensor([[[1.0]]]),
        next_obs=state(1).view(1, 1, 1, 2),
        terminated=torch.tensor([[[False]]]),
    )
    return given._replace(**changes)


@pytest.mark.parametrize(
    "double, target",
    [
        (False, 5.0),  # the target network's best: 1 + .5 * max(4, 8, 2)
        (True, 2.0),  # the online network's best is action 2, which the target network values 2: 1 + .5 * 2
    ],
)
def test_the_target_is_the_target_networks_best_or_its_value_of_the_online_networks_best(double, target):
    learner = make(double=double)
    put(learner.target_critic, 0, [0.0, 0.0, 0.0], [4.0, 8.0, 2.0])
    put(learner.critic, 0, [0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    assert learner.compute_target(one()).item() == target


def test_a_termination_stops_the_bootstrap_and_an_action_out_of_reach_is_not_the_best():
    learner = make(double=False)
    put(learner.target_critic, 0, [0.0, 0.0, 0.0], [4.0, 8.0, 2.0])
    assert learner.compute_target(one(terminated=torch.tensor([[[True]]]))).item() == 1.0
    may = torch.tensor([True, False, True]).view(1, 1, 1, 3)
    assert learner.compute_target(one(next_avail=may)).item() == 3.0  # 1 + .5 * max(4, 2)


def test_an_n_step_target_discounts_each_reward_and_bootstraps_after_the_last_that_counts():
    learner = make(double=False)
    put(learner.target_critic, 0, [0.0, 0.0, 0.0], [4.0, 8.0, 2.0])
    batch = Batch(
        obs=state(0, 0, 0).view(1, 1, 3, 2),
        action=torch.zeros(1, 1, 3, dtype=torch.int64),
        reward=torch.tensor([[[1.0, 1.0, 1.0]]]),
        next_obs=state(1, 1, 1).view(1, 1, 3, 2),
        terminated=torch.tensor([[[False, True, False]]]),
        rewards=torch.tensor([[[[1.0, 2.0, 4.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]]]),
        steps=torch.tensor([[[3, 2, 1]]]),
    )
    # three steps: 1 + .5 * 2 + .25 * 4 + .125 * 8 = 4; terminated at the second: 1 + .5 * 2 = 2;
    # a window of one step, cut by a time limit: 1 + .5 * 8 = 5
    assert learner.compute_target(batch).tolist() == [[[4.0, 2.0, 5.0]]]


def test_through_the_replay_an_n_step_return_bootstraps_at_a_limit_from_the_last_observation_and_crosses_no_end():
    """Each step of the probe earns 1; after 5 the limit. What is seen is always 1, worth 8 to the target network."""
    env = make_env("probe/truncation", seeds=[0], copies=1, options={"continuous": False})
    learner = DQN(env.spec, [config(hidden=(), gamma=0.5, n_step=3)], [0])
    learner.target_critic.flat.data.fill_(4.0)  # weight and bias: 4 * 1 + 4
    replay = DQN.Buffer.of(config(n_step=3, buffer_size=10, batch_size=64), env.spec, 1, [0], 0)
    obs = env.reset()
    for _ in range(10):
        action = torch.zeros(1, 1, 1, dtype=torch.int64)
        step = env.step(action)
        replay.add(View(obs), Acted(action), step)
        obs = step.obs
    batch = replay.draw()
    # 3 steps: 1 + .5 + .25 + .125 * 8 = 2.75; 2 left to the limit: 1 + .5 + .25 * 8 = 3.5; 1 left: 1 + .5 * 8 = 5
    expected = torch.tensor([0.0, 5.0, 3.5, 2.75])[batch.steps[:, 0]]
    assert set(batch.steps.flatten().tolist()) == {1, 2, 3}
    torch.testing.assert_close(learner.compute_target(batch)[:, 0], expected)


def test_with_reciprocity_the_neighbours_target_network_is_asked_for_my_action_at_my_state():
    learner = make(agents=2, reciprocity__kappa=0.5, reciprocity__adjacency="exact")
    put(learner.target_critic, 0, [1.0, 2.0, 3.0], [4.0, 8.0, 2.0])
    put(learner.target_critic, 1, [6.0, 7.0, 5.0], [0.0, 2.0, 9.0])
    put(learner.critic, 0, [0.0, 0.0, 0.0], [0.0, 1.0, 0.0])  # in state 1 agent 0 would take action 1
    put(learner.critic, 1, [1.0, 0.0, 0.0], [0.0, 0.0, 0.0])  # in state 0 agent 1 would take action 0
    batch = Batch(
        obs=state(0, 0).view(1, 2, 1, 2),
        action=torch.zeros(1, 2, 1, dtype=torch.int64),
        reward=torch.tensor([[[1.0], [2.0]]]),
        next_obs=state(1, 0).view(1, 2, 1, 2),
        terminated=torch.zeros(1, 2, 1, dtype=torch.bool),
    )
    # agent 0: (Q_0(1, 1) + Q_1(1, 1)) / 2 = (8 + 2) / 2 = 5, 1 + 2.5
    # agent 1: (Q_1(0, 0) + Q_0(0, 0)) / 2 = (6 + 1) / 2 = 3.5, 2 + 1.75
    assert learner.compute_target(batch).flatten().tolist() == [3.5, 3.75]
    assert learner.reciprocity.gap.flatten().tolist() == [3.0, 2.5]


def test_one_update_moves_the_value_of_the_action_taken_and_nothing_else():
    learner = make(double=False, huber_delta=1.0, max_grad_norm=None)
    put(learner.target_critic, 0, [0.0, 0.0, 0.0], [4.0, 8.0, 2.0])
    metrics = learner.update(one())
    # The error is 0 - 5; beyond 1 the loss is linear: 5 - 1/2. Its slope is -1 at the weight and at the bias.
    assert metrics["loss/critic"].item() == 4.5 and metrics["value/target_mean"].item() == 5.0
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[math.sqrt(2)]]))
    weight, bias = learner.critic.layers[0].weight[0, 0], learner.critic.layers[0].bias[0, 0, 0]
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.0]]))  # Adam's first step: lr
    torch.testing.assert_close(bias, torch.tensor([0.0, 0.1, 0.0]))


def test_without_huber_the_loss_is_half_the_square():
    learner = make(huber_delta=None, max_grad_norm=None)
    metrics = learner.update(one(reward=torch.tensor([[[3.0]]])))
    assert metrics["loss/critic"].item() == 4.5  # 3^2 / 2
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[3 * math.sqrt(2)]]))


NOT = [math.nan] * 3


def test_a_lesson_is_learnt_for_all_actions_by_least_squares_whatever_the_reward():
    learner = make(max_grad_norm=None)
    lesson = torch.tensor([1.0, 2.0, -2.0]).view(1, 1, 1, 3)
    metrics = learner.update(one(reward=torch.tensor([[[1e9]]])), lesson)
    # (1 + 4 + 4) / 2; the slope is -(1, 2, -2) at the weights of state 0 and at the biases: 3 twice
    assert metrics["loss/critic"].item() == 4.5
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[3 * math.sqrt(2)]]))
    weight = learner.critic.layers[0].weight[0, 0]
    torch.testing.assert_close(weight, torch.tensor([[0.1, 0.1, -0.1], [0.0, 0.0, 0.0]]))  # Adam's first step: lr


def test_rows_without_a_lesson_are_learnt_by_td_beside_those_with_one():
    learner = make(max_grad_norm=None, huber_delta=None)
    batch = Batch(
        obs=state(0, 1).view(1, 1, 2, 2),
        action=torch.tensor([[[0, 1]]]),
        reward=torch.tensor([[[9.0, 1.0]]]),
        next_obs=state(1, 0).view(1, 1, 2, 2),
        terminated=torch.tensor([[[False, True]]]),
    )
    metrics = learner.update(batch, torch.tensor([[1.0, 2.0, -2.0], NOT]).view(1, 1, 2, 3))
    # (4.5 + 1 / 2) / 2. Slopes, halved as there are two rows: -(1, 2, -2) in state 0, -(0, 1, 0) in state 1 and
    # -(1, 3, -2) at the biases: (9 + 1 + 14) / 4 = 6
    assert metrics["loss/critic"].item() == 2.5
    torch.testing.assert_close(metrics["grad/critic_norm"], torch.tensor([[math.sqrt(6)]]))


def test_without_a_lesson_in_any_row_it_is_the_td_update_bit_for_bit_also_for_members_beside_one_that_is_taught():
    found = []
    for lesson in (None, torch.full((2, 2, 8, 3), math.nan), torch.full((2, 2, 8, 3), math.nan)):
        if found[1:]:
            assert lesson is not None
            lesson[1, :, 3:] = 1.0
        learner = DQN(PICTURES, [config(hidden=(8,), target_interval=2)] * 2, [3, 4])
        metrics = [learner.update(scene([3, 4])[0], lesson) for _ in range(3)][-1]
        found.append((learner.critic.flat.data, metrics["loss/critic"]))
    (plain, loss), (empty, same), (beside, _) = found
    assert torch.equal(plain, empty) and torch.equal(loss, same)
    assert torch.equal(plain[0], beside[0]) and not torch.equal(plain[1], beside[1])


def test_the_targets_become_copies_at_every_interval_and_stand_still_between():
    learner = make(target_interval=3)
    for count in range(1, 7):
        learner.update(one())
        same = torch.equal(learner.target_critic.flat.data, learner.critic.flat.data)
        assert same == (count % 3 == 0)


def test_epsilon_falls_exponentially_with_the_environments_steps_and_each_member_has_its_own():
    spec = EnvSpec("test/table", ("a",), (2,), (3,), True)
    configs = [config(epsilon_final=0.1, epsilon_decay=100.0), config(epsilon_final=0.0, epsilon_decay=50.0)]
    learner = DQN(spec, configs, [0, 1])
    assert learner.epsilon().flatten().tolist() == [1.0, 1.0]
    view = View(torch.zeros(2, 1, 25, 2))  # 25 copies: 25 steps
    for _ in range(4):
        learner.act(view, explore=True)
    learner.act(view, explore=False)
    # .1 + .9 / e = .4311, and e^-2 = .1353
    torch.testing.assert_close(learner.epsilon().flatten(), torch.tensor([0.4311, 0.1353]), atol=1e-4, rtol=0)
    learner.steps = 10**9
    assert learner.epsilon().flatten().tolist() == pytest.approx([0.1, 0.0])


def test_a_random_action_comes_as_often_as_epsilon_says():
    learner = make(epsilon_final=0.3)
    put(learner.critic, 0, [0.0, 1.0, 0.0], [0.0, 0.0, 0.0])
    learner.steps = 10**9
    action = learner.act(View(state(0).expand(1, 1, 30_000, 2)), explore=True).action
    # two thirds of the random ones are not action 1: .2 of all, give or take .0023
    assert (action != 1).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_continuous_actions_are_refused():
    with pytest.raises(UserError, match=r"dqn needs discrete actions, those of test/x are continuous; td3 handles"):
        DQN(EnvSpec("test/x", ("a",), (1,), (1,), False), [config()], [0])


# ---- probes -------------------------------------------------------------------------------------------------------

GAMMA = 0.8
SEEDS, KAPPAS = [1, 2, 1, 2], [0.0, 0.0, 0.5, 0.5]
COPIES = 8
NOTHING_TO_CHOOSE = ("constant", "discount", "truncation", "termination", "masking")
VARIANTS: dict[str, dict[str, Any]] = {
    "double": {},
    "plain": {"double": False},
    "duelling": {"duelling": True},
    "three steps": {"n_step": 3},
}
CASES = [("double", name) for name in PROBES]
CASES += [("plain", "discount"), ("duelling", "discount"), ("duelling", "heterogeneous")]
CASES += [("three steps", name) for name in ("discount", "truncation", "termination")]


def train(learner: DQN, env: VectorEnv, seeds: Sequence[int], updates: int) -> None:
    """Random actions first, then one step of all copies before every second update."""
    settings = dataclasses.replace(learner.config, buffer_size=1024, batch_size=64)
    replay, warmup = Replay.of(settings, env.spec, env.copies, seeds, 0), Streams(seeds, "warmup")
    view = env.start()
    for count in range(-100, updates):
        if count < 0 or count % 2 == 0:
            if count < 0:
                acted = Acted(random_actions(warmup, env.spec, env.copies))
            else:
                acted = learner.act(view, explore=True)
            step = env.step(acted.action)
            replay.add(view, acted, step)
            view = following(acted, step)
        if count >= 0:
            learner.update(replay.draw())


@pytest.mark.parametrize("variant, name", CASES)
def test_a_probe_is_solved_to_its_known_values(variant, name):
    """Two seeds without and with reciprocity among states that are exactly equal: the optimum is the same."""

    def probe(seeds: list[int], copies: int) -> Probe:
        env = make_env(f"probe/{name}", seeds=seeds, copies=copies, options={"continuous": False})
        assert isinstance(env, Probe)
        return env

    env = probe(SEEDS, COPIES)
    settings = {"hidden": (32, 32), "gamma": GAMMA, "lr": 3e-3, "target_interval": 8, "epsilon_decay": 400.0}
    base = config(**settings, epsilon_final=0.2, reciprocity__adjacency="exact", **VARIANTS[variant])
    learner = DQN(env.spec, [replace(base, "reciprocity.kappa", kappa) for kappa in KAPPAS], SEEDS)
    train(learner, env, SEEDS, updates=300 if name in NOTHING_TO_CHOOSE else 500)
    played = probe([9] * len(SEEDS), 16)
    view = played.start()
    for _ in range(played.length):
        acted, best = learner.act(view, explore=False), played.best_action(view.obs)
        with torch.no_grad():
            value = learner.critic(view.obs).gather(-1, acted.action.unsqueeze(-1)).squeeze(-1)
        step = played.step(acted.action)
        if name == "team":  # two pairs of actions are equally good, and what the partner does is part of the world
            assert (step.reward == 1).all()
        else:
            if name not in NOTHING_TO_CHOOSE:
                assert torch.equal(acted.action, best)
            expected = played.optimal_value(view.obs, GAMMA)
            torch.testing.assert_close(value, expected, atol=0.1, rtol=0.03)
        view = following(acted, step)


# ---- pictures -----------------------------------------------------------------------------------------------------

PICTURES = EnvSpec("test/pictures", ("a", "b"), (48, 48), (3, 3), True, bytes=True, pixels=(3, 4, 4))


def scene(seeds: Sequence[int]) -> tuple[Batch, View]:
    streams = Streams(seeds, "scene")
    obs, after = (streams.integers(256, 2, 8, 48).float() for _ in range(2))
    over = streams.uniform(2, 8) < 0.3
    return Batch(obs, streams.integers(3, 2, 8), streams.normal(2, 8), after, over), View(obs)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_with_pictures_too_a_member_of_a_population_learns_as_it_would_alone(kappa):
    def learnt(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        learner = DQN(PICTURES, [config(hidden=(8,), target_interval=2, reciprocity__kappa=kappa)] * len(seeds), seeds)
        batch, view = scene(seeds)
        for _ in range(3):
            learner.update(batch)
        return torch.stack([learner.critic.flat.data, learner.target_critic.flat.data]), learner.act(view, True).action

    weights, actions = learnt([3, 4, 5])
    for p, seed in enumerate([3, 4, 5]):
        alone, acted = learnt([seed])
        torch.testing.assert_close(alone[:, 0], weights[:, p], rtol=1e-5, atol=1e-5)
        assert torch.equal(acted[0], actions[p])


def test_with_pictures_a_kappa_of_zero_is_no_reciprocity_bit_for_bit_also_beside_members_with_another():
    found = []
    for kappas in ([0.0, 0.0], [0.0, 0.5]):
        learner = DQN(PICTURES, [config(hidden=(8,), reciprocity__kappa=kappa) for kappa in kappas], [3, 4])
        for _ in range(3):
            learner.update(scene([3, 4])[0])
        found.append(learner.critic.flat.data)
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][1], found[1][1])


def test_a_restored_picture_learner_goes_on_in_the_same_bits():
    one, other = (DQN(PICTURES, [config(hidden=(8,), target_interval=2)], [seed]) for seed in (3, 9))
    batch, _ = scene([3])
    one.update(batch)
    other.load_state_dict(one.state_dict())
    for learner in (one, other):
        learner.update(batch)
    assert torch.equal(one.critic.flat.data, other.critic.flat.data)
    assert torch.equal(one.target_critic.flat.data, other.critic.flat.data)  # the second update copied


# ---- learning -----------------------------------------------------------------------------------------------------


def test_cartpole_is_learnt():
    """Two seeds, 8 copies, 8000 steps each. Random play lasts 22 steps, 500 is the limit; seen: 177 and 143 (and 354
    and 233 for two other seeds)."""
    seeds = [0, 1]
    env = make_env("gym/CartPole-v1", seeds=seeds, copies=8)
    made = config(
        hidden=(64, 64), lr=3e-3, gamma=0.98, n_step=3, target_interval=25, epsilon_decay=1500.0, batch_size=64
    )
    learner, replay = DQN(env.spec, [made] * 2, seeds), Replay.of(made, env.spec, 8, seeds, 0)
    view = env.start()
    for t in range(1000):
        acted = learner.act(view, explore=True)
        step = env.step(acted.action)
        replay.add(view, acted, step)
        view = following(acted, step)
        if t >= 50:
            learner.update(replay.draw())
            learner.update(replay.draw())
    env.close()
    played = make_env("gym/CartPole-v1", seeds=[5, 6], copies=10)
    view, alive = played.start(), torch.ones(2, 1, 10, dtype=torch.bool)
    length = torch.zeros(2, 1, 10)
    while alive.any():
        acted = learner.act(view, explore=False)
        step = played.step(acted.action)
        length += alive
        alive &= ~step.done
        view = following(acted, step)
    played.close()
    assert (length.mean(-1) > 90).all()
