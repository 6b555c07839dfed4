"""Landmarks and Navigation: rules, starts and the closed form of the best return."""

from __future__ import annotations

import numpy as np
import pytest

from marl.classic.tabular import IndependentQ
from marl.classic.worlds.blocker import make_blocker
from marl.classic.worlds.landmarks import best_returns, make_landmarks
from marl.classic.worlds.navigation import make_navigation
from marl.classic.worlds.simulate import greedy_returns
from marl.classic.worlds.world import DOWN, LEFT, RIGHT, UP
from marl.types import UserError

AT_CENTRE = 12  # row 2, column 2 of five by five


def test_each_agent_is_paid_for_its_own_landmark_and_stays_there():
    """Agent 0 stands above the centre, its landmark, and goes down; agent 1 walks along the top row to its corner."""
    world = make_landmarks()
    first = world.step(np.array([1, 2, AT_CENTRE, 0, 2, 0]), [DOWN, LEFT])
    assert first.state.tolist() == [2, 2, AT_CENTRE, 0, 1, 0]
    assert first.reward.tolist() == [1, -1] and first.terminated.tolist() == [True, False]
    second = world.step(first.state, [UP, LEFT])
    assert second.state.tolist() == [2, 2, AT_CENTRE, 0, 0, 0]
    assert second.reward.tolist() == [0, 1] and second.terminated.tolist() == [True, True]


def test_agents_share_cells_and_the_edge_stops_them():
    after = make_landmarks().step(np.array([0, 0, AT_CENTRE, 0, 1, 7]), [UP, LEFT])
    assert after.state.tolist() == [0, 0, AT_CENTRE, 0, 0, 7] and after.reward.tolist() == [-1, -1]
    after = make_landmarks().step(np.array([4, 4, AT_CENTRE, 3, 4, 7]), [RIGHT, DOWN])
    assert after.state.tolist() == [4, 4, AT_CENTRE, 4, 4, 7]


def test_another_agents_landmark_is_nothing_to_an_agent():
    after = make_landmarks().step(np.array([1, 2, 0, 0, 2, AT_CENTRE]), [DOWN, LEFT])
    assert after.state[:2].tolist() == [2, 2] and after.reward[0] == -1 and not after.terminated[0]


def test_landmarks_are_dealt_out_one_each_and_navigation_has_one_for_all():
    rng = np.random.default_rng(0)
    for _ in range(200):
        own = make_landmarks(10).start(rng).reshape(10, 3)
        common = make_navigation(10).start(rng).reshape(10, 3)
        assert len(set(own[:, 2])) == 10 and len(set(common[:, 2])) == 1
        for agents in (own, common):
            assert (5 * agents[:, 0] + agents[:, 1] != agents[:, 2]).all()


@pytest.mark.parametrize("make", [make_landmarks, make_navigation])
def test_every_agent_meets_each_pair_of_cell_and_landmark_equally_often(make):
    """25 x 24 = 600 pairs, 60 000 draws: 100 of each, standard deviation 10; the largest of 600 stays below 150."""
    world, rng = make(2), np.random.default_rng(1)
    drawn = np.array([world.start(rng)[3:] for _ in range(60_000)])  # agent 1
    counts = np.bincount(np.ravel_multi_index(tuple(drawn.T), world.sizes), minlength=625)
    listed = np.unique(np.ravel_multi_index(tuple(world.starts[:, 3:].T), world.sizes))
    assert len(world.starts) == len(listed) == 600 and (np.flatnonzero(counts) == listed).all()
    assert counts[listed].min() > 50 and counts[listed].max() < 150


@pytest.mark.parametrize("world", [make_landmarks(1), make_landmarks(10), make_navigation(3)], ids=lambda w: w.name)
def test_the_best_return_is_two_minus_the_distance_and_on_average_minus_four_thirds(world):
    """|difference| of two uniform numbers of 0..4 is 1.6 on average, so 3.2 for both axes over all 625 pairs, and
    3.2 x 625 / 600 = 10/3 over the pairs that differ; 2 - 10/3 = -4/3."""
    assert best_returns(world).mean() == pytest.approx(-4 / 3)
    assert best_returns(world).max() == 1.0 and best_returns(world).min() == -6.0  # 1 step; corner to corner, 8


def test_agents_that_always_step_closer_reach_the_best_return_from_every_start():
    world = make_landmarks(3)
    learner = IndependentQ(3, world.states, 4, 0.99)
    row, column, mark = np.unravel_index(np.arange(world.states), world.sizes)
    for action, (down, right) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
        r, c = np.clip(row + down, 0, 4), np.clip(column + right, 0, 4)
        learner.q[:, :, action] = -(np.abs(r - mark // 5) + np.abs(c - mark % 5))
    assert greedy_returns(world, learner).tolist() == best_returns(world).tolist()


def test_agents_that_never_arrive_lose_a_point_each_step_until_the_horizon():
    """Tables of zeros: everyone goes up (the lowest action) for ever, and only landmarks straight above are reached."""
    world = make_landmarks(1, horizon=7)
    returns = greedy_returns(world, IndependentQ(1, world.states, 4, 0.99))
    row, column, mark = world.starts.T
    above = (mark % 5 == column) & (mark // 5 < row)
    assert returns[~above].tolist() == [-7.0] * (~above).sum()
    assert (returns[above] == 2.0 - (row - mark // 5)[above]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_landmarks(26), "agents: expected a whole number from 1 to 25, got 26"),
        (lambda: make_navigation(0), "agents: expected a whole number of 1 or more, got 0"),
        (lambda: best_returns(make_blocker(1)), "expected Landmarks or Navigation, got blocker"),
        (lambda: greedy_returns(make_landmarks(2), IndependentQ(3, 625, 4, 0.9)), r"needs tables .* \[2, 625, 4\]"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call()
