"""The PettingZoo face, the compiled simulator, and that both play by one rule."""

from __future__ import annotations

import numpy as np
import pytest

from marl.classic import digital
from marl.classic.networks import make_network
from marl.classic.tabular import IndependentQ, PolicyReciprocityQ
from marl.classic.worlds import blocker, landmarks, navigation
from marl.classic.worlds.blocker import make_blocker
from marl.classic.worlds.landmarks import make_landmarks
from marl.classic.worlds.navigation import make_navigation
from marl.classic.worlds.simulate import play
from marl.types import UserError

pytest.importorskip("pettingzoo")
from pettingzoo.test import parallel_api_test, parallel_seed_test

from marl.classic.worlds.parallel import ParallelWorld

MODULES = (blocker, landmarks, navigation, digital)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_pettingzoos_own_tests_pass(module):
    parallel_api_test(module.parallel_env(), num_cycles=200)
    parallel_seed_test(module.parallel_env, num_cycles=60)


def test_an_observation_is_one_hot_by_coordinate():
    """Row 1, column 0, landmark 7 of sizes 5, 5, 25: ones at 1, 5 + 0 and 10 + 7."""
    env = landmarks.parallel_env(agents=1)
    env.reset(seed=0)
    env.position = np.array([1, 1, 7])
    obs, *_, infos = env.step({"agent_0": 2})
    assert np.flatnonzero(obs["agent_0"]).tolist() == [1, 5, 17] and obs["agent_0"].dtype == np.float32
    assert infos["agent_0"]["view"].tolist() == [1, 0, 7]


def test_an_agent_at_its_landmark_leaves_and_at_the_horizon_the_others_are_truncated_not_terminated():
    env = landmarks.parallel_env(agents=2, horizon=2)
    env.reset(seed=0)
    env.position = np.array([1, 2, 12, 0, 0, 24])  # agent 0 is above the centre, its landmark
    _, rewards, terminations, truncations, _ = env.step({"agent_0": 1, "agent_1": 0})
    assert rewards == {"agent_0": 1.0, "agent_1": -1.0}
    assert terminations == {"agent_0": True, "agent_1": False} and not any(truncations.values())
    assert env.agents == ["agent_1"]
    obs, _, terminations, truncations, _ = env.step({"agent_1": 0})
    assert list(obs) == ["agent_1"] and terminations == {"agent_1": False} and truncations == {"agent_1": True}
    assert env.agents == []


def test_an_entry_at_the_horizon_is_a_termination():
    env = blocker.parallel_env(horizon=1)
    env.reset(seed=0)
    env.position = np.array([2, 0, 2, 3, 2, 6, 0])
    _, _, terminations, truncations, _ = env.step(dict.fromkeys(env.agents, 1))
    assert all(terminations.values()) and not any(truncations.values())


def rollout(env, steps, seed=None):
    rng, seen = np.random.default_rng(9), []
    for _ in range(steps):
        if not env.agents:
            env.reset(seed=seed)
            seed = None
        seen.append(env.step({a: int(rng.integers(env.action_space(a).n)) for a in env.agents}))
    return seen


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_seeds_fix_everything_and_a_saved_environment_goes_on_bit_for_bit(module):
    env, again, other = module.parallel_env(), module.parallel_env(), module.parallel_env()
    first = rollout(env, 50, seed=3)
    np.testing.assert_equal(first, rollout(again, 50, seed=3))
    assert str(first) != str(rollout(other, 50, seed=4))
    other.load_state_dict(env.state_dict())
    np.testing.assert_equal(rollout(env, 90), rollout(other, 90))


@pytest.mark.parametrize("world", [make_blocker(1), make_landmarks(3), make_navigation(2)], ids=lambda w: w.name)
def test_the_compiled_simulator_and_the_face_with_step_by_step_updates_make_the_same_tables(world):
    """Both ask the generator for the same numbers in the same order: the start, then each agent's die and action."""
    epsilon, episodes = 0.3, 25
    shape = (world.agents, world.states, 4)
    fast, slow = (
        PolicyReciprocityQ(*shape, 0.99, make_network("complete", world.agents), world.adjacency("row"), b=0.4)
        for _ in range(2)
    )
    returns = play(world, fast, np.random.default_rng(5), episodes, epsilon)

    env, totals = ParallelWorld(world), []
    env.rng = np.random.default_rng(5)
    for _ in range(episodes):
        _, infos = env.reset()
        now = np.array([row_of(world, infos, a) for a in env.possible_agents])
        totals.append(0.0)
        while env.agents:
            action = np.zeros(world.agents, np.int64)
            for i in np.flatnonzero(now >= 0):
                wild = env.rng.random() < epsilon
                action[i] = env.rng.integers(0, 4) if wild else slow.q[i, now[i]].argmax()
            there = list(env.agents)
            _, rewards, terminations, _, infos = env.step({a: action[int(a[6:])] for a in there})
            after = np.array([row_of(world, infos, a) for a in env.possible_agents])
            reward = np.array([rewards.get(a, 0.0) for a in env.possible_agents])
            terminated = np.array([terminations.get(a, True) for a in env.possible_agents])
            slow.update(now, action, reward, np.maximum(after, 0), terminated)
            now = np.where(terminated, -1, after)
            totals[-1] += reward.mean()
    np.testing.assert_array_equal(fast.q, slow.q)
    np.testing.assert_array_equal(fast.visits, slow.visits)
    np.testing.assert_allclose(returns, totals)
    assert fast.steps == slow.steps and (fast.q != 0).any()


def row_of(world, infos, agent):
    """The agent's row of its table; -1 for one that is not there."""
    return np.ravel_multi_index(tuple(infos[agent]["view"]), world.sizes) if agent in infos else -1


def test_the_time_limit_is_bootstrapped_through_and_an_entry_is_not():
    """One step of value -1, tables of 10, gamma .5, a = .5: at the horizon 10 + .5 (-1 + 5 - 10) = 7. To stop the
    bootstrap there, the usual slip, would make it 10 + .5 (-1 - 10) = 4.5."""
    world = make_blocker(1, horizon=1)  # nobody enters in one step from the top row
    learner = IndependentQ(2, world.states, 4, 0.5, a=0.5)
    learner.q[:] = 10.0
    play(world, learner, np.random.default_rng(0), 1, 0.0)
    assert sorted(set(learner.q.ravel())) == [7.0, 10.0]
    world = make_landmarks(1, horizon=1)
    learner = IndependentQ(1, world.states, 4, 0.5, a=0.5)
    learner.q[:] = 10.0
    play(world, learner, np.random.default_rng(0), 200, 1.0)
    arrived = learner.q[learner.visits == 1]
    assert set(arrived) == {7.0, 10 + 0.5 * (1 - 10)}


def test_an_agent_that_has_arrived_updates_nothing_while_the_others_walk_on():
    """Visits of agent i are the steps it walked: with returns of 2 - steps, N x 2 less the sum of returns in all."""
    world = make_landmarks(3, horizon=10_000)
    learner = IndependentQ(3, world.states, 4, 0.99)
    returns = play(world, learner, np.random.default_rng(0), 20, 1.0)
    assert learner.visits.sum() == round(20 * 3 * 2 - 3 * returns.sum())
    assert learner.visits.sum() < 3 * learner.steps


def test_play_refuses_tables_and_probabilities_that_do_not_fit():
    world, rng = make_landmarks(2), np.random.default_rng(0)
    with pytest.raises(UserError, match=r"landmarks needs tables \[N, S, A\] = \[2, 625, 4\], got \[2, 10, 4\]"):
        play(world, IndependentQ(2, 10, 4, 0.9), rng, 1, 0.1)
    with pytest.raises(UserError, match=r"epsilon: expected a number from 0 to 1, got 1\.5"):
        play(world, IndependentQ(2, 625, 4, 0.9), rng, 1, 1.5)
    with pytest.raises(UserError, match="episodes: expected 0 or more, got -1"):
        play(world, IndependentQ(2, 625, 4, 0.9), rng, -1, 0.1)


@pytest.mark.parametrize("name", ["worlds.blocker", "worlds.landmarks", "worlds.navigation", "digital"])
def test_the_deep_half_plays_and_saves_them_as_pettingzoo_modules(name):
    from marl.envs import make_env
    from marl.envs.check import check_env

    id = f"pettingzoo/marl.classic.{name}"
    check_env(lambda seeds: make_env(id, seeds=seeds, copies=2, options={"horizon": 5}))
    env = make_env(id, seeds=[0], copies=2)
    assert env.spec.discrete and env.spec.exact_state and env.spec.max_steps == 40
    env.close()


def test_a_keyword_of_the_module_sets_the_number_of_agents():
    from marl.envs import make_env

    assert make_env("pettingzoo/marl.classic.worlds.blocker", options={"blockers": 1}).spec.n_agents == 2
    with pytest.raises(UserError, match="blockers"):
        make_env("pettingzoo/marl.classic.worlds.blocker", options={"blockers": 0})
