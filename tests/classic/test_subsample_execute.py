"""Algorithm 2 against the exact value of its stochastic policy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from subsample_tools import at_ordered_states, random_system

from marl.classic.subsample.cells import Cells
from marl.classic.subsample.demand import consumption_groups, demand_response
from marl.classic.subsample.draws import alias_rows, draw_each
from marl.classic.subsample.evaluate import gap, policy_values, subsample_policy, uniform_mean
from marl.classic.subsample.execute import Crowd, execute
from marl.classic.subsample.joint import joint_q
from marl.classic.subsample.multisets import MultisetIndex
from marl.classic.subsample.system import LocalGlobalSystem
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


def spread(chances, cells, n):
    """``[A, cells]`` of a table that merges nothing -> ``[G, A, L, ..., L]``."""
    table = np.stack(np.split(chances, cells.start[1:-1], axis=1))
    return at_ordered_states(table, cells.indices[0], n)


def test_the_stochastic_policy_is_the_share_of_subsets_that_choose_an_action():
    """Equation (6), subset by subset."""
    system, n = random_system(0), 4
    table, cells = SubsampleQ(system, 2, merge=False).solve(), Cells(system, n, merge=False)
    found = subsample_policy(table, cells)
    index = cells.indices[1]
    for number, states in enumerate(index.unrank(np.arange(index.size))):
        actions = [table.act(np.array([1]), states[list(d)][None])[0] for d in combinations(range(n), 2)]
        expected = np.bincount(actions, minlength=2) / 6
        np.testing.assert_allclose(found[:, cells.start[1] + number], expected)


@pytest.mark.parametrize("follows_action", [False, True])
def test_the_value_of_subsampling_is_that_of_the_joint_chain(follows_action):
    system, n = random_system(3, follows_action=follows_action), 3
    table, cells = SubsampleQ(system, 1, merge=False).solve(), Cells(system, n, merge=False)
    chances = subsample_policy(table, cells)
    policy = spread(chances, cells, n)
    joint = (policy * joint_q(system, n, 1e-10, policy)).sum(1)
    rewards = np.stack([system.local_reward[:, s].mean(1) for s in MultisetIndex(3, n).unrank(np.arange(10))], 1)
    found = policy_values(system, cells, chances, 1e-9) + rewards.reshape(-1)
    np.testing.assert_allclose(spread(found[None], cells, n)[:, 0], joint, atol=1e-8)


@pytest.mark.parametrize("k, merge", [(1, True), (2, True), (2, False)])
def test_the_exact_gap_is_the_largest_difference_on_the_joint_chain(k, merge):
    system, n = random_system(3, twins=True), 3
    table, optimum = SubsampleQ(system, k, merge=merge).solve(1e-8), SubsampleQ(system, n, merge=merge).solve(1e-8)
    apart, cells = SubsampleQ(system, k, merge=False).solve(1e-8), Cells(system, n, merge=False)
    policy = spread(subsample_policy(apart, cells), cells, n)
    lost = joint_q(system, n).max(1) - (policy * joint_q(system, n, policy=policy)).sum(1)
    assert lost.max() > 0.03
    found = gap(table, optimum)
    assert found.worst == pytest.approx(lost.max(), abs=1e-5)
    assert found.mean == pytest.approx(lost.mean(), abs=1e-5)


def test_the_gap_falls_with_k_to_nothing_at_k_equal_to_n():
    system, n = demand_response(types=(1,)), 4
    optimum = SubsampleQ(system, n).solve(1e-6)
    found = [gap(SubsampleQ(system, k).solve(1e-6), optimum).worst for k in range(1, n + 1)]
    assert found[0] > 1 and found == sorted(found, reverse=True) and abs(found[-1]) < 1e-4


def test_the_gap_need_not_fall_at_every_step():
    system = random_system(12)
    optimum = SubsampleQ(system, 3).solve(1e-7)
    found = [gap(SubsampleQ(system, k).solve(1e-7), optimum).worst for k in (1, 2)]
    assert found == pytest.approx([0.113, 0.202], abs=1e-3)


def test_executions_earn_what_the_exact_value_says():
    """Demand response, n = 3, k = 1, from uniform states: the mean of many runs is within 4 standard errors."""
    system, n, steps = demand_response(), 3, 120
    table, cells = SubsampleQ(system, 1).solve(), Cells(system, n)
    values = policy_values(system, cells, subsample_policy(table, cells))
    exact = uniform_mean(values, cells) + system.local_reward.mean()
    played = execute(Crowd(system, n, 4000, seed=3), table, steps).discounted
    error = played.std() / np.sqrt(len(played))
    assert abs(played.mean() - exact) < 4 * error < 0.05 * exact


def test_the_reward_is_that_of_all_agents_at_the_states_left_discounted_by_time():
    """Nothing moves. r_g = 1, agents at 0, 0, 1 with r_l 0, 0, 3: r = 1 + 1 = 2; over t = 0 .. 2: 2 (1 + .5 + .25)."""
    system = LocalGlobalSystem(np.ones((1, 1, 1)), np.eye(2)[None], np.ones((1, 1)), np.array([[0.0, 3]]), 0.5)
    crowd = Crowd(system, 3)
    crowd.local_state[:] = [[0, 0, 1]]
    played = execute(crowd, SubsampleQ(system, 1), steps=2)
    assert played.discounted.tolist() == [3.5]
    assert played.reward.tolist() == [2, 2, 2]


def test_subsets_are_uniform_fresh_and_without_repetition():
    """n = 5, k = 2: 10 subsets, each with 1/10 of 20 000 draws, +- 4 sqrt(.1 .9 20 000) = 170."""
    system = LocalGlobalSystem(np.ones((1, 1, 1)), np.eye(5)[None], np.ones((1, 1)), np.zeros((1, 5)), 0.5)
    crowd = Crowd(system, 5, runs=20_000)
    crowd.local_state[:] = np.arange(5)
    for _ in range(2):
        seen = np.sort(crowd.sample(2), axis=1)
        counts = np.bincount(seen[:, 0] * 5 + seen[:, 1], minlength=25).reshape(5, 5)
        assert (np.diag(counts) == 0).all()
        assert (np.abs(counts[np.triu_indices(5, 1)] - 2000) < 170).all()
    assert (np.sort(crowd.sample(5), axis=1) == np.arange(5)).all()


def test_agents_move_by_their_rows():
    """10^5 agents in each state: frequencies within 5 standard errors of every chance, .5 / sqrt(1e5) at most."""
    system = random_system(4, follows_action=True)
    crowd = Crowd(system, 300_000, seed=1)
    crowd.global_state[:] = 1
    crowd.local_state[:] = np.repeat(np.arange(3), 100_000)
    crowd.step(np.array([0]))
    for x in range(3):
        found = np.bincount(crowd.local_state[0, x * 100_000 : (x + 1) * 100_000], minlength=3) / 100_000
        np.testing.assert_allclose(found, system.local_transition[1, 0, x], atol=5 * 0.5 / np.sqrt(100_000))


def test_alias_rows_keep_their_chances():
    rows = np.random.default_rng(0).dirichlet(np.ones(7) / 3, size=4)
    rows[0] = [0, 0, 1, 0, 0, 0, 0]
    table = alias_rows(rows)
    for r, row in enumerate(rows):
        entries = slice(table.starts[r], table.starts[r + 1])
        found = np.zeros(7)
        np.add.at(found, table.columns[entries], table.keep[entries])
        np.add.at(found, table.others[entries], 1 - table.keep[entries])
        np.testing.assert_allclose(found / (entries.stop - entries.start), row, atol=1e-12)
    assert (draw_each(table, np.zeros(99, np.int64), np.arange(99, dtype=np.uint64) << np.uint64(57)) == 2).all()


def test_a_crowd_saved_in_the_middle_goes_on_bit_for_bit():
    system = demand_response()
    table, crowd, other = SubsampleQ(system, 2).solve(), Crowd(system, 20, 5, seed=1), Crowd(system, 20, 5, seed=9)
    execute(crowd, table, 3)
    other.load_state_dict(crowd.state_dict())
    np.testing.assert_array_equal(execute(crowd, table, 5).discounted, execute(other, table, 5).discounted)


def test_a_million_agents_are_executed_by_a_lumped_table():
    system = demand_response()
    table = SubsampleQ(demand_response(lumped=True), 4).solve()
    played = execute(Crowd(system, 10**6), table, steps=3, view=consumption_groups())
    assert played.reward.shape == (4,) and np.isfinite(played.reward).all()


def test_states_or_steps_that_there_are_not_and_tables_of_another_k_are_refused():
    system = random_system(0)
    table, zero = SubsampleQ(system, 2).fit(1), np.zeros(1, np.int64)
    with pytest.raises(UserError, match=r"local_states \[1, 3\]: expected \[R, 2\]"):
        table.act(zero, np.zeros((1, 3), np.int64))
    for state in (-1, system.local_states):
        with pytest.raises(UserError, match="expected"):
            table.act(zero, np.array([[0, state]]))
    with pytest.raises(UserError, match="steps = -1"):
        execute(Crowd(system, 3), table, -1)
    with pytest.raises(UserError, match="values: expected"):
        table.load_state_dict(SubsampleQ(system, 3).state_dict())


def test_sizes_that_make_no_sense_are_refused():
    system = random_system(0)
    with pytest.raises(UserError, match=r"k = 3 of n = 2 local agents: expected 1 <= k <= n; the nearest is 2"):
        execute(Crowd(system, 2), SubsampleQ(system, 3), 1)
    with pytest.raises(UserError, match="k = 2 of n = 1"):
        gap(SubsampleQ(system, 2), SubsampleQ(system, 1))
    with pytest.raises(UserError, match=r"\[3, 3\] classes: expected the same system and merge, \[2, 2\] classes"):
        system = random_system(0, twins=True)
        gap(SubsampleQ(system, 1, merge=False), SubsampleQ(system, 2))
    with pytest.raises(UserError, match="n = 0 agents, 1 runs"):
        Crowd(system, 0)
