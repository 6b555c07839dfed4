"""Independent moves of exchangeable agents, expected exactly; value iteration on the whole joint chain."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from subsample_tools import loop_q, random_system

from marl.classic.subsample.exact import expectation
from marl.classic.subsample.joint import joint_q
from marl.classic.subsample.multisets import MultisetIndex
from marl.types import UserError


def brute(values, kernel, target, moved):
    """Every ordered outcome of the agents that move, those that do not at new states given."""
    old, still = MultisetIndex(len(kernel), moved), target.k - moved
    rest = [()] if not still else MultisetIndex(target.states, still).unrank(
        np.arange(MultisetIndex(target.states, still).size)
    )  # fmt: skip
    out = np.zeros((old.size, len(rest)))
    for row, start in enumerate(old.unrank(np.arange(old.size))):
        for column, others in enumerate(rest):
            for new in product(range(target.states), repeat=moved):
                chance = np.prod([kernel[x, y] for x, y in zip(start, new, strict=True)])
                out[row, column] += chance * values[target.rank(np.array([*new, *others]))]
    return out


@pytest.mark.parametrize("k, moved", [(1, 1), (2, 2), (3, 3), (4, 4), (3, 1), (4, 2), (4, 3)])
def test_moving_one_agent_at_a_time_is_the_sum_over_all_outcomes(k, moved):
    rng = np.random.default_rng(k)
    target = MultisetIndex(3, k)
    kernel = rng.random((2, 3))
    kernel[0, 1] = 0  # a row with a gap
    kernel /= kernel.sum(1, keepdims=True)
    values = rng.normal(size=target.size)
    found = expectation(values, kernel, target, moved)
    expected = brute(values, kernel, target, moved)
    np.testing.assert_allclose(found, expected[:, 0] if k == moved else expected, atol=1e-12)


def test_two_coins_show_one_head_half_of_the_time():
    """V = 1 on {0, 1} alone; two agents each at 0 or 1 with 1/2: 2 x 1/4 = 1/2."""
    target = MultisetIndex(2, 2)
    assert expectation(np.array([0.0, 1.0, 0.0]), np.array([[0.5, 0.5]]), target).tolist() == [0.5]


def test_values_or_kernels_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"expected \[3\] and \[C, 2\]"):
        expectation(np.zeros(4), np.eye(2), MultisetIndex(2, 2))
    with pytest.raises(UserError, match="moved = 3: expected 1 to 2"):
        expectation(np.zeros(3), np.eye(2), MultisetIndex(2, 2), moved=3)


@pytest.mark.parametrize("follows_action", [False, True])
def test_the_joint_chain_is_what_plain_loops_find(follows_action):
    """gamma .5: after 30 sweeps loops are within .5^30 / .5 x 6 of Q*, about 1e-8."""
    system = random_system(0, gamma=0.5, follows_action=follows_action)
    np.testing.assert_allclose(joint_q(system, 2), loop_q(system, 2, 30), atol=1e-7)


def test_the_joint_value_of_a_policy_that_is_the_greedy_one_is_the_optimum():
    system = random_system(1)
    q = joint_q(system, 2, 1e-10)
    greedy = (q == q.max(1, keepdims=True)).astype(float)
    np.testing.assert_allclose(joint_q(system, 2, 1e-10, greedy), q, atol=1e-8)
    uniform = np.full_like(q, 1 / system.actions)
    assert (joint_q(system, 2, 1e-10, uniform) < q).any()


def test_a_joint_chain_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="the joint chain of n = 30 takes"):
        joint_q(random_system(0), 30)
