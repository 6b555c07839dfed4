"""The shipped processes are what their pages say, down to the closed forms of their optima."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import classic_planning
from marl.classic import instances
from marl.classic.instances import (
    make_chain,
    make_combination_lock,
    make_continuous_mdp,
    make_heterogeneous_locks,
    make_linear_multiagent,
    make_lock_family,
    make_riverswim,
    make_simplex_mdp,
    make_soft_block_lock,
    make_value_shift,
)
from marl.classic.locks import lock_table, lock_value
from marl.classic.mdp import HeterogeneousLinearMDP, LinearMultiagentMDP
from marl.classic.planning import convex_coverage_set, evaluate_policy, optimal_values, start_value
from marl.types import UserError


def optimum(mdp):
    return start_value(mdp, optimal_values(mdp).v)


def parameters(mdp):
    if isinstance(mdp, LinearMultiagentMDP):
        return [mdp.reward_features, mdp.transition_features, mdp.theta, mdp.mu]
    return [mdp.features, mdp.theta, mdp.mu]


SIZES = {  # S, A, d, H of algorithms.md's list
    make_combination_lock: (5, 2, 10, 6),
    make_riverswim: (5, 2, 10, 12),
    make_chain: (5, 2, 10, 10),
    make_soft_block_lock: (40, 3, 8, 8),
    make_simplex_mdp: (20, 4, 5, 6),
    make_heterogeneous_locks: (5, 2, 12, 6),
    make_value_shift: (8, 3, 8, 5),
    make_linear_multiagent: (12, 4, 10, 6),
}


@pytest.mark.parametrize("make", SIZES)
def test_the_default_sizes_are_those_of_the_page(make):
    mdp = make()
    assert (mdp.states, mdp.actions, mdp.dim, mdp.horizon) == SIZES[make]


PAGE = Path(__file__).parents[2] / "docs/classic/processes.md"
ROWS = [
    re.split(r" *\| *", line)[1:-1] for line in PAGE.read_text().splitlines() if re.match(r"\| `make_\w+\(\)` \|", line)
]


@pytest.mark.parametrize("row", [row for row in ROWS if len(row) == 5 and row[3]], ids=lambda row: row[0])
def test_the_numbers_on_the_page_are_the_processes(row):
    mdp = getattr(instances, row[0].strip("`()"))()
    assert row[1] == f"{mdp.states}, {mdp.actions}, {mdp.dim}, {mdp.horizon}"
    uniform = np.full((mdp.horizon, mdp.states, mdp.actions), 1 / mdp.actions)
    assert row[2:4] == [f"{optimum(mdp):.4f}", f"{start_value(mdp, evaluate_policy(mdp, uniform)):.4f}"]


def test_the_page_names_every_process():
    assert {row[0].strip("`()") for row in ROWS} == set(instances.__all__)


@pytest.mark.parametrize("make", [make_soft_block_lock, make_simplex_mdp, make_value_shift, make_linear_multiagent])
def test_a_seed_gives_one_process_and_another_seed_another(make):
    once, again, other = (parameters(make(seed=seed)) for seed in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(once, again, strict=True))
    assert not all((a == b).all() for a, b in zip(once, other, strict=True))


def test_the_lock_by_hand():
    """No slip: .9^4 and two steps of 1. One slip, at the first step: .1 x .9^4 and one step. Later slips: nothing."""
    assert optimum(make_combination_lock()) == pytest.approx(0.9**4 * 2 + 0.1 * 0.9**4 * 1)
    assert optimum(make_combination_lock(slip=0)) == 6 - 4


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 8), st.floats(0, 0.9))
def test_the_locks_recursion_is_its_optimal_value(n, more, slip):
    mdp = make_combination_lock(n, n + more, slip)
    assert optimum(mdp) == pytest.approx(lock_value(n, n + more, slip), abs=1e-12)


def test_the_code_is_the_only_way_to_open_the_lock():
    code = [0, 0, 1, 0]
    mdp = make_combination_lock(code=code, slip=0)
    np.testing.assert_array_equal(optimal_values(mdp).policy[0, :4], code)
    opening = [start_value(mdp, evaluate_policy(mdp, np.tile([*c, 0], (6, 1)))) for c in np.ndindex(2, 2, 2, 2)]
    assert np.flatnonzero(opening) == [int("0010", 2)]


def test_a_wrong_action_and_a_slip_lead_back_to_the_first_position():
    table = lock_table([1, 0], slip=0.25)
    np.testing.assert_array_equal(table.transition[1], [[0.25, 0, 0.75], [1, 0, 0]])
    np.testing.assert_array_equal(table.transition[2], [[0, 0, 1], [0, 0, 1]])


def test_riverswim_has_the_standard_probabilities():
    mdp = make_riverswim()
    np.testing.assert_allclose(mdp.transition[0, 2], [[0, 1, 0, 0, 0], [0, 0.05, 0.6, 0.35, 0]])
    np.testing.assert_allclose(mdp.transition[0, [0, 4], 1], [[0.4, 0.6, 0, 0, 0], [0, 0, 0, 0.4, 0.6]])
    np.testing.assert_array_equal(mdp.transition[0, [0, 4], 0].argmax(-1), [0, 3])
    assert (
        mdp.reward[0, 0].tolist() == [0.005, 0] and mdp.reward[0, 4].tolist() == [0, 1] and not mdp.reward[0, 1:4].any()
    )


def test_riverswim_of_two_banks_by_hand():
    """Two steps: right, then 1 with probability .6 and .005 with .4; left twice would be .01."""
    assert optimum(make_riverswim(states=2, horizon=2)) == pytest.approx(0.6 * 1 + 0.4 * 0.005)


def test_swimming_right_all_the_time_is_as_good_as_riverswim_gets_but_for_the_left_banks_crumbs():
    """Its value is the sum of (P_right^t)[0, 4]; whatever else is done can only add some of the 12 x .005."""
    mdp = make_riverswim()
    right = mdp.transition[0, :, 1]
    value = sum(np.linalg.matrix_power(right, t)[0, 4] for t in range(12))
    assert start_value(mdp, evaluate_policy(mdp, np.ones((12, 5), int))) == pytest.approx(value)
    assert value <= optimum(mdp) <= value + 12 * 0.005
    assert optimal_values(mdp).policy[0].tolist() == [1] * 5


def test_the_chain_without_slips_pays_from_the_last_state_on():
    """Four steps to the fifth state, then six steps of 1; turning back all the time pays 10 x .2 = 2."""
    mdp = make_chain(slip=0)
    assert optimum(mdp) == pytest.approx(6)
    assert start_value(mdp, evaluate_policy(mdp, np.zeros((10, 5), int))) == pytest.approx(2)


def test_the_chains_slip_swaps_the_actions():
    """One step in state 0: back pays .8 x .2, on pays .2 x .2. In the last of two: on .8 x 1 + .2 x .2, back .36."""
    mdp = make_chain(n=2, horizon=1)
    np.testing.assert_allclose(mdp.reward[0], [[0.16, 0.04], [0.36, 0.84]])
    np.testing.assert_allclose(mdp.transition[0, 0], [[0.8, 0.2], [0.2, 0.8]])
    always = make_chain(n=2, horizon=1, slip=1)
    np.testing.assert_allclose(always.reward[0], make_chain(n=2, horizon=1, slip=0).reward[0][:, ::-1])


def test_a_lock_of_hard_blocks_pays_as_a_lock_does():
    """Seven moves to the eighth block; the move into it and the last step pay: 8 - 7 + 1 = 2."""
    assert optimum(make_soft_block_lock(softness=0)) == pytest.approx(2)


def test_the_soft_lock_has_low_rank_and_its_measures_are_blocks_of_states():
    mdp = make_soft_block_lock()
    assert np.linalg.matrix_rank(mdp.transition[0].reshape(120, 40)) == 8
    np.testing.assert_array_equal(np.argwhere(mdp.mu[0] > 0)[:, 0], np.arange(40) // 5)
    np.testing.assert_array_equal(mdp.start, mdp.mu[0, 0])
    np.testing.assert_array_equal(mdp.reward, np.broadcast_to(mdp.features[..., 7], (8, 40, 3)))


def test_one_action_of_each_state_leads_to_the_next_block():
    mdp = make_soft_block_lock()
    onward = np.take_along_axis(mdp.features, (np.arange(40) // 5 + 1).clip(max=7)[:, None, None], 2)[..., 0] > 0.89
    assert onward[:35].sum(1).tolist() == [1] * 35 and onward[35:].all()
    assert set(onward[:35].argmax(1)) == {0, 1, 2}


def test_a_simplex_process_mixes_its_measures():
    mdp = make_simplex_mdp()
    np.testing.assert_allclose(mdp.features.sum(-1), 1)
    np.testing.assert_allclose(mdp.mu.sum(-1), 1)
    assert np.linalg.matrix_rank(mdp.transition[3].reshape(80, 20)) == 5


@pytest.mark.parametrize("differ", ["rewards", "transitions", "both"])
def test_the_optimal_values_of_a_family_lie_the_separation_apart_and_the_features_are_shared(differ):
    """The best task is the lock of prize 1: .9^3 x 2 + .1 x .9^3 x 1 for n = 3, H = 5."""
    tasks = make_lock_family(differ=differ)
    best = 0.9**3 * 2.1
    np.testing.assert_allclose([optimum(task) for task in tasks], best - 0.3 * np.arange(5), atol=1e-12)
    assert all((task.features == tasks[0].features).all() for task in tasks)


def test_what_differs_in_a_family_is_what_was_asked_for():
    for differ, same_rewards, same_moves in (
        ("rewards", False, True),
        ("transitions", True, False),
        ("both",) + (False,) * 2,
    ):
        for one, other in combinations(make_lock_family(differ=differ), 2):
            assert (one.theta == other.theta).all() == same_rewards
            assert (one.mu == other.mu).all() == same_moves


def test_no_two_tasks_of_a_family_are_opened_alike():
    policies = [optimal_values(task).policy[0, :3].tolist() for task in make_lock_family(n_tasks=8, separation=0.1)]
    assert len({tuple(policy) for policy in policies}) == 8


@pytest.mark.parametrize("n", [62, 63, 100])
def test_long_locks_have_more_codes_than_can_be_counted_and_families_all_the_same(n):
    one, other = make_lock_family(n_tasks=2, separation=0.01, n=n, horizon=n + 1, slip=0.0)
    assert [optimum(one), optimum(other)] == pytest.approx([1, 0.99])
    codes = [optimal_values(task).policy[0, :n] for task in (one, other)]
    assert 10 < (codes[0] != codes[1]).sum() < 52  # of the 62 drawn; the others are the same


def test_a_family_without_separation_has_one_value_and_several_tasks():
    """What DistMT-LSVI has to merge: the value tells nothing, and one task's policy is worth nothing in another."""
    one, other = make_lock_family(n_tasks=2, separation=0)
    assert optimum(one) == pytest.approx(optimum(other), abs=1e-14)
    assert start_value(other, evaluate_policy(other, optimal_values(one).policy)) < 0.2 * optimum(other)


def test_heterogeneous_locks_are_two_groups_in_turn_with_one_position_swapped():
    mdp = make_heterogeneous_locks()
    policies = np.array([optimal_values(member).policy[0] for member in mdp.members])
    np.testing.assert_array_equal(policies[:, :4], [[1, 0, 1, 0], [1, 1, 1, 0]] * 3)
    np.testing.assert_allclose([optimum(member) for member in mdp.members], 0.9**4 * 2.1)


def test_the_policy_of_one_group_never_opens_the_lock_of_the_other():
    first, second = make_heterogeneous_locks().members[:2]
    assert start_value(second, evaluate_policy(second, optimal_values(first).policy)) == 0


def test_groups_share_all_coordinates_but_those_of_the_swapped_positions():
    """Three groups: agent 0 knows coordinates 0 to 9; group 1 has 10 and 11 at position 1, group 2 12, 13 at 2."""
    mdp = make_heterogeneous_locks(agents=6, groups=3)
    used = mdp.features.argmax(-1)
    np.testing.assert_array_equal(used[0], used[3])
    np.testing.assert_array_equal(used[0], np.arange(10).reshape(5, 2))
    assert np.argwhere(used[4] != used[0])[:, 0].tolist() == [1, 1] and used[4, 1].tolist() == [10, 11]
    assert np.argwhere(used[5] != used[0])[:, 0].tolist() == [2, 2] and used[5, 2].tolist() == [12, 13]
    assert mdp.dim == 14


def test_in_definition_2_as_printed_all_agents_share_one_optimal_policy():
    """kappa(m) shifts the values: by one number for each step, alike in all states, to 1e-12."""
    mdp = make_value_shift()
    solutions = [optimal_values(member) for member in mdp.members]
    values = np.array([solution.v for solution in solutions])
    shift = values - values[0]
    assert np.ptp(shift, axis=-1).max() < 1e-12
    assert np.abs(shift[1:, 0]).min() > 1e-3  # and yet they are different processes
    assert all((solution.policy == solutions[0].policy).all() for solution in solutions)
    gaps = np.array([np.sort(solution.q)[..., -1] - np.sort(solution.q)[..., -2] for solution in solutions])
    assert gaps.min() > 1e-6  # no policy is shared because of ties


def test_the_value_shift_has_the_features_of_definition_2():
    mdp = make_value_shift(agents=3)
    assert isinstance(mdp, HeterogeneousLinearMDP)
    phi, kappa = mdp.features[..., :5], mdp.features[..., 5:]
    assert (phi == phi[:1]).all() and (kappa == kappa[:, :1, :1]).all()
    assert not np.allclose(kappa[0, 0, 0], kappa[1, 0, 0])


def test_the_teams_agents_want_different_things():
    """Each can have its best only at the other's cost: the front is no point."""
    front = convex_coverage_set(make_linear_multiagent())
    assert len(front.values) > 20
    assert np.ptp(front.values, axis=0).min() > 0.5


@pytest.mark.parametrize("agents", [1, 2, 3, 4, 6])
def test_the_teams_features_keep_the_papers_bounds_for_other_numbers_of_agents(agents):
    mdp = make_linear_multiagent(actions_each=(2,) * agents, states=4)
    assert mdp.agents == agents
    assert np.linalg.norm(mdp.joint_features, ord=2, axis=(-2, -1)).max() <= 1
    assert np.linalg.norm(mdp.mu.sum(-1), axis=-1).max() <= mdp.dim**0.5 + 1e-12


CONTINUOUS = make_continuous_mdp()


def test_the_continuous_locks_optimum_is_that_of_a_lock_with_one_more_step():
    """It is paid on arrival: a step earlier than a lock that pays where it is. .9^4 x 3 + .1 x .9^4 x (2 + ...) ..."""
    assert CONTINUOUS.optimum[0, 0] == pytest.approx(lock_value(4, 7, 0.1), abs=1e-14)
    assert make_continuous_mdp(slip=0).optimum[0, 0] == 6 - 4 + 1


def test_the_continuous_optimum_is_the_mean_of_the_best_action_over_each_cell():
    """Bellman's equation by quadrature: Q* is linear in u and the best action constant, so midpoints are exact."""
    x = (np.arange(5 * 40) + 0.5) / 200
    for h in range(6):
        means = CONTINUOUS.optimal_q(h, x).max(-1).reshape(5, 40).mean(-1)
        np.testing.assert_allclose(means, CONTINUOUS.optimum[h], atol=1e-14)


def test_the_value_of_the_continuous_optimal_policy_is_the_optimum_and_of_a_wrong_one_less():
    best = CONTINUOUS.evaluate(lambda h, x: CONTINUOUS.optimal_q(h, x).argmax(-1))
    np.testing.assert_allclose(best, CONTINUOUS.optimum, atol=1e-14)
    wrong = CONTINUOUS.evaluate(lambda h, x: np.zeros(x.shape, int))
    assert wrong[0, 0] < 0.6 * best[0, 0]


def test_the_best_action_of_the_continuous_lock_is_the_cells_code():
    x = np.linspace(0, 0.8, 400, endpoint=False)
    best = CONTINUOUS.optimal_q(0, x).argmax(-1)
    np.testing.assert_array_equal(best, np.array([1, 0, 1, 0])[(x * 5).astype(int)])


@settings(max_examples=50)
@given(st.floats(0, 1, exclude_max=True), st.floats(0, 0.5), st.integers(1, 6))
def test_continuous_features_are_points_of_the_simplex(x, slip, n):
    features = make_continuous_mdp(n, n + 1, slip=slip).features(x)
    assert features.shape == (2, n + 1)
    assert features.min() >= 0
    np.testing.assert_allclose(features.sum(-1), 1)


def test_continuous_features_by_hand():
    """x = .3 is half of the way through cell 1 of 5, where action 0 is right: p = 1 - 2 x .1 x .5 = .9, else .45."""
    np.testing.assert_allclose(CONTINUOUS.features(0.3), [[0.1, 0, 0.9, 0, 0], [0.55, 0, 0.45, 0, 0]])


def test_sampled_continuous_episodes_earn_the_optimum():
    """20 000 episodes, returns in [0, 3]: the standard error is below .011; six of them."""
    rng = np.random.default_rng(0)
    x, total = CONTINUOUS.reset(rng, 20_000), np.zeros(20_000)
    for h in range(6):
        reward, x = CONTINUOUS.step(rng, x, CONTINUOUS.optimal_q(h, x).argmax(-1))
        total += reward
    assert abs(total.mean() - CONTINUOUS.optimum[0, 0]) < 6 * total.std() / 20_000**0.5


def test_one_continuous_state_steps_as_well_as_many():
    rng = np.random.default_rng(0)
    x = CONTINUOUS.reset(rng)
    reward, following = CONTINUOUS.step(rng, x, 1)
    assert 0 <= x < 0.2 and reward == 0 and 0 <= following < 0.4


BAD = {
    r"n 4 with horizon 4: expected 1 <= n < horizon": lambda: make_combination_lock(4, 4),
    r"code \[0, 2\]: expected one or more actions between 0 and 1": lambda: make_combination_lock(2, 4, code=[0, 2]),
    r"code of 3 actions: expected n = 2": lambda: make_combination_lock(2, 4, code=[0, 1, 1]),
    r"slip 1: expected 0 <= slip < 1": lambda: make_combination_lock(slip=1),
    r"slip -0.1: expected a probability": lambda: make_chain(slip=-0.1),
    r"states 1: expected 2 banks or more": lambda: make_riverswim(states=1),
    r"states 7: expected 8 or more, one for each block": lambda: make_soft_block_lock(states=7),
    r"softness 2: expected a number in \[0, 1\]": lambda: make_soft_block_lock(softness=2),
    r"dim 0: expected 1 or more": lambda: make_simplex_mdp(dim=0),
    r"5 tasks 0.4 apart: the best has value 1.531; .* separation < 0.3827": lambda: make_lock_family(separation=0.4),
    r"0 tasks 0.3 apart": lambda: make_lock_family(n_tasks=0),
    r"9 tasks: 3 positions have 8 codes; expected n_tasks <= 8": lambda: make_lock_family(9, 0.1),
    r"differ 'reward': .*did you mean 'rewards'": lambda: make_lock_family(differ="reward"),
    r"transition \[6001, 2, 6001\]: 72024002 numbers, expected 50000000 at most": lambda: lock_table([1] * 6000),
    r"groups 5: expected 1 to 4": lambda: make_heterogeneous_locks(groups=5),
    r"contexts 0: expected 1 or more": lambda: make_value_shift(contexts=0),
    r"7 agents with 10 features: expected 6 agents at most": lambda: make_linear_multiagent(actions_each=(2,) * 7),
    r"actions_each\[1\] 0: expected 1 or more": lambda: make_linear_multiagent(actions_each=(2, 0)),
    r"slip 0.6: expected 0.5 at most": lambda: make_continuous_mdp(slip=0.6),
    r"5 tasks nan apart": lambda: make_lock_family(separation=float("nan"), differ="transitions"),
    r"slip nan: expected 0 <= slip < 1": lambda: make_lock_family(slip=float("nan"), differ="transitions"),
    r"seed -1: expected a whole number of 0 or more": lambda: make_simplex_mdp(seed=-1),
    r"seed 0.5: expected a whole number of 0 or more": lambda: make_linear_multiagent(seed=0.5),
    r"seed -2: expected a whole number of 0 or more": lambda: make_lock_family(seed=-2),
}


@pytest.mark.parametrize("message", BAD)
def test_arguments_that_make_no_process_are_refused_with_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        BAD[message]()
    assert "\n" not in str(caught.value)


def test_the_example_finds_what_the_page_says(capsys):
    found = classic_planning.main()
    assert found["optimum"] == pytest.approx(1.37781) and found["vertices"] == 55
    assert "right actions [1 0 1 0]" in capsys.readouterr().out
    assert classic_planning.main(agents=3)["vertices"] > 55
