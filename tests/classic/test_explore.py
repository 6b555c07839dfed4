"""ExpPh and Planning against Algorithms 2 and 3 written out over the whole history, and against numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic import explore
from marl.classic.distmt_constants import Problem, TheoryConstants
from marl.classic.explore import World, exp_ph, greedy_policy, planning, uniform_exploration
from marl.classic.instances import make_combination_lock, make_riverswim, make_simplex_mdp
from marl.classic.mdp import LinearMDP
from marl.classic.planning import optimal_values
from marl.classic.ridge import RidgeStatistics
from marl.types import UserError

SUMS = ("gram", "reward_sum", "next_sum", "count")


def one_state(actions: int, horizon: int, reward: float = 1.0) -> LinearMDP:
    """One state, one-hot actions, each of which pays ``reward``."""
    features = np.eye(actions)[None]
    return LinearMDP(features, np.full((horizon, actions), reward), np.ones((horizon, actions, 1)))


def literally(world: World, beta: float, episodes: int, rng: np.random.Generator) -> list[list[tuple[int, int, int]]]:
    """Algorithm 2 as printed: every regression solved anew from the whole history before every episode."""
    horizon, states, actions = world.reward.shape
    draws = rng.random((episodes, horizon))
    history: list[list[tuple[int, int, int]]] = [[] for _ in range(horizon)]
    for k in range(episodes):
        value, policy = np.zeros(states), np.zeros((horizon, states), int)
        for h in reversed(range(horizon)):
            phi = np.array([world.features[x, a] for x, a, _ in history[h]]).reshape(
                len(history[h]), world.features.shape[-1]
            )
            gram = np.eye(world.features.shape[-1]) + phi.T @ phi
            target = sum((f * value[y] for f, (_, _, y) in zip(phi, history[h], strict=True)), np.zeros(len(gram)))
            theta = np.linalg.solve(gram, target)
            q = np.zeros((states, actions))
            for x in range(states):
                for a in range(actions):
                    f = world.features[x, a]
                    u = min(beta * math.sqrt(f @ np.linalg.solve(gram, f)), horizon)
                    q[x, a] = min(theta @ f + u + u / horizon, horizon)
            policy[h], value = q.argmax(-1), q.max(-1)
        x = world.start
        for h in range(horizon):
            a = policy[h, x]
            y = int(np.searchsorted(world.cumulative[h, x, a], draws[k, h], side="right"))
            history[h].append((x, a, y))
            x = y
    return history


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_planned_before_every_episode_it_is_algorithm_2_as_printed(beta):
    world = World.of(make_simplex_mdp(states=6, actions=3, dim=4, horizon=3, seed=1))
    history = literally(world, beta, 60, np.random.default_rng(5))
    data = exp_ph(world, beta, 60, np.random.default_rng(5), replan_growth=1)
    for h, steps in enumerate(history):
        phi = np.array([world.features[x, a] for x, a, _ in steps])
        np.testing.assert_allclose(data.gram[h], phi.T @ phi, atol=1e-10)
        np.testing.assert_allclose(
            data.reward_sum[h], sum(world.reward[h, x, a] * world.features[x, a] for x, a, _ in steps)
        )
        np.testing.assert_allclose(data.next_sum[h], phi.T @ np.eye(6)[[y for *_, y in steps]], atol=1e-10)
    assert data.count.tolist() == [60, 60, 60]


def test_one_step_and_two_actions_are_explored_in_turn():
    """u = .25 / sqrt(1 + n), the less tried action has the larger one; the first tie goes to action 0: 6 of 11."""
    data = exp_ph(World.of(one_state(2, horizon=1)), 0.25, 11, np.random.default_rng(0), replan_growth=1)
    assert np.diagonal(data.gram[0]).tolist() == [6, 5]


def test_rewards_do_not_steer_the_exploration():
    first = make_simplex_mdp(states=6, actions=3, dim=4, horizon=3, seed=1)
    other = LinearMDP(first.features, np.zeros_like(first.theta), first.mu, first.start)
    a, b = (exp_ph(World.of(task), 1.0, 200, np.random.default_rng(0)) for task in (first, other))
    np.testing.assert_array_equal(a.next_sum, b.next_sum)
    assert a.reward_sum.any() and not b.reward_sum.any()


def test_the_scale_of_the_bonus_cancels_until_it_is_clipped():
    world = World.of(make_simplex_mdp(states=6, actions=3, dim=4, horizon=3, seed=1))
    small, twice, huge = (exp_ph(world, b, 100, np.random.default_rng(0)).gram for b in (0.01, 0.02, 100.0))
    np.testing.assert_array_equal(small, twice)
    assert not np.array_equal(small, huge)


def test_rare_switching_plans_as_often_as_the_determinants_can_grow():
    """Each plan but the first needs log 1.2 of growth at some h, and all h together grow by H d log(1 + K / d)."""
    world = World.of(make_simplex_mdp(states=6, actions=3, dim=4, horizon=3, seed=1))
    draws = np.random.default_rng(0).random((2000, 3))

    def plans(growth: float) -> int:
        data = world.empty()
        return explore._explore(
            *world, 1.0, math.log(growth), draws, data.gram, data.inverse, data.reward_sum, data.next_sum
        )

    assert plans(1.0) == 2000
    assert 10 < plans(1.2) <= 1 + 3 * 4 * math.log(1 + 2000 / 4) / math.log(1.2)


def test_planning_by_hand():
    """One state, one action, r = 1, H = 2, K = 3, so Lambda = 4 and the ridge shrinks by 3/4.

    beta 0: V_2 = 3 x 1 / 4 = .75, V_1 = 3 x (1 + .75) / 4 = 1.3125. beta 1: u = 1 / sqrt 4 = .5, V_2 = 1.25,
    V_1 = min(3 x 2.25 / 4 + .5, H) = min(2.1875, 2).
    """
    data = exp_ph(World.of(one_state(1, horizon=2)), 1.0, 3, np.random.default_rng(0))
    features = np.ones((1, 1, 1))
    np.testing.assert_allclose(planning(data, features, 0.0).value[:, 0], [1.3125, 0.75])
    np.testing.assert_allclose(planning(data, features, 1.0).value[:, 0], [2.0, 1.25])


def test_planning_with_one_hot_features_is_counting():
    world = World.of(make_combination_lock())
    data = exp_ph(world, 1.0, 300, np.random.default_rng(0))
    n = data.next_sum.reshape(6, 5, 2, 5)
    value = np.zeros(5)
    for h in reversed(range(6)):
        visits = n[h].sum(-1)
        q = (n[h].sum(-1) * world.reward[h] + n[h] @ value) / (1 + visits) + 0.3 / np.sqrt(1 + visits)
        value = np.minimum(q, 6).max(-1)
        np.testing.assert_allclose(planning(data, world.features, 0.3).value[h], value, atol=1e-12)


def test_theta_and_lambda_alone_give_back_the_plans_policy():
    world = World.of(make_riverswim())
    data = exp_ph(world, 1.0, 200, np.random.default_rng(0))
    plan = planning(data, world.features, 0.2)
    np.testing.assert_array_equal(greedy_policy(plan.theta, data.inverse, world.features, 0.2), plan.policy)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), episodes=st.integers(1, 50))
def test_values_are_optimistic_with_the_constants_of_the_theory(seed, episodes):
    task = make_simplex_mdp(states=6, actions=2, dim=3, horizon=3, seed=seed)
    beta = TheoryConstants().implied(Problem(3, 3, 2, 0.1, 0.1, 0.3))[0].beta_plan
    data = exp_ph(World.of(task), beta, episodes, np.random.default_rng(seed))
    assert (planning(data, task.features, beta).value >= optimal_values(task).v[:-1] - 1e-9).all()


def test_without_a_bonus_few_episodes_are_not_optimistic():
    """The ridge shrinks towards 0: what the test above would say of a plan that forgot its bonus."""
    task = make_simplex_mdp(states=6, actions=2, dim=3, horizon=3, seed=0)
    data = exp_ph(World.of(task), 1.0, 5, np.random.default_rng(0))
    assert planning(data, task.features, 0.0).value[0, 0] < optimal_values(task).v[0, 0]


def test_uniform_exploration_draws_every_action_alike_and_leads_where_the_process_leads():
    """30 000 draws of 3 actions: 10 000 each, standard deviation sqrt(30 000 x 2 / 9) = 82; 5 of them allowed."""
    task = make_simplex_mdp(states=6, actions=3, dim=4, horizon=1, seed=1)
    one_hot = LinearMDP.one_hot(task.tabular, 1)
    data = uniform_exploration(World.of(one_hot), 30_000, np.random.default_rng(0))
    visits = data.next_sum[0].reshape(6, 3, 6)
    assert visits[1:].sum() == 0 and np.abs(visits[0].sum(-1) - 10_000).max() < 5 * 82
    np.testing.assert_allclose(visits[0] / visits[0].sum(-1, keepdims=True), task.transition[0, 0], atol=0.025)


def test_exp_ph_opens_a_long_lock_again_and_again_where_uniform_actions_hardly_ever_do():
    """12 positions, each passed with .5 x .9: uniform actions open it at once in 6000 x .45^12 = .4 episodes."""
    world = World.of(make_combination_lock(n=12, horizon=14))

    def open_steps(data: RidgeStatistics) -> float:
        return float(data.gram[:, -2:, -2:].trace(axis1=1, axis2=2).sum())  # the last state's two one-hot features

    assert open_steps(exp_ph(world, 1.0, 6000, np.random.default_rng(0))) > 100
    assert open_steps(uniform_exploration(world, 6000, np.random.default_rng(0))) < 10


def test_bad_input_is_one_line():
    world = World.of(one_state(2, horizon=1))
    with pytest.raises(UserError, match=r"^replan_growth: expected 1 .* or more, got 0.5$"):
        exp_ph(world, 1.0, 10, np.random.default_rng(0), replan_growth=0.5)
    for explorer in (lambda n, rng: exp_ph(world, 1.0, n, rng), lambda n, rng: uniform_exploration(world, n, rng)):
        with pytest.raises(UserError, match=r"^episodes: expected 1 or more, got 0$"):
            explorer(0, np.random.default_rng(0))
    data = exp_ph(world, 1.0, 10, np.random.default_rng(0))
    for beta in (-1.0, math.nan, math.inf):
        for use in (
            lambda b: exp_ph(world, b, 10, np.random.default_rng(0)),
            lambda b: planning(data, world.features, b),
        ):
            with pytest.raises(UserError, match=rf"^beta: expected a number of 0 or more, got {beta}$"):
                use(beta)
    lock = make_combination_lock()
    with pytest.raises(UserError, match=r"^start: expected one fixed state s_0 .*, got 5 possible ones$"):
        World.of(LinearMDP(lock.features, lock.theta, lock.mu, np.full(5, 0.2)))
