"""The planners against enumeration, against each other, and against numbers worked out by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from marl.classic.instances import make_linear_multiagent, make_simplex_mdp
from marl.classic.mdp import LinearMDP, LinearMultiagentMDP, TabularMDP
from marl.classic.planning import (
    convex_coverage_set,
    discounted_values,
    evaluate_policy,
    greedy,
    optimal_values,
    policy_iteration,
    start_value,
    vector_values,
)
from marl.types import UserError


def random_table(seed, states=3, actions=2, horizon=None):
    rng = np.random.default_rng(seed)
    shape = (states, actions) if horizon is None else (horizon, states, actions)
    return TabularMDP(rng.dirichlet(np.ones(states), shape), rng.uniform(size=shape), rng.dirichlet(np.ones(states)))


def every_policy(actions, *shape):
    """``[actions ** size, *shape]``."""
    return np.array(list(product(range(actions), repeat=int(np.prod(shape))))).reshape(-1, *shape)


STAY_OR_GO = TabularMDP(  # state 0: action 0 stays and pays 0, action 1 goes to 1 and pays 0; state 1 pays 1 and stays
    np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]), np.array([[0.0, 0.0], [1.0, 1.0]])
)


def test_backward_induction_by_hand():
    """Three steps: go at once, then twice 1. With one step left nothing can be won, and the tie goes to action 0."""
    q, v, policy = optimal_values(STAY_OR_GO, horizon=3)
    np.testing.assert_array_equal(v, [[2, 3], [1, 2], [0, 1], [0, 0]])
    np.testing.assert_array_equal(q[0], [[1, 2], [3, 3]])
    np.testing.assert_array_equal(policy, [[1, 0], [1, 0], [0, 0]])
    assert start_value(STAY_OR_GO, v) == 2


def test_discounted_values_by_hand():
    """gamma .5: state 1 is worth 1 / (1 - .5) = 2, state 0 then .5 x 2 = 1."""
    solution = policy_iteration(STAY_OR_GO, 0.5)
    np.testing.assert_allclose(solution.v, [1, 2])
    np.testing.assert_allclose(solution.q, [[0.5, 1], [2, 2]])
    np.testing.assert_array_equal(solution.policy, [1, 0])
    assert start_value(STAY_OR_GO, solution.v) == 1


@pytest.mark.parametrize("seed", range(5))
def test_backward_induction_is_the_best_of_all_policies_in_every_state_at_every_step(seed):
    """3 states, 2 actions, 3 steps: 2^9 = 512 policies that change with the step."""
    table = random_table(seed, horizon=3)
    solution = optimal_values(table)
    values = evaluate_policy(table, every_policy(2, 3, 3))
    assert values.shape == (512, 4, 3)
    np.testing.assert_allclose(solution.v, values.max(0), atol=1e-14)
    np.testing.assert_allclose(evaluate_policy(table, solution.policy), solution.v, atol=1e-14)


def test_a_policy_that_looks_one_step_ahead_only_is_worse():
    """The usual bug: argmax of the reward. It stays in state 0 (a tie of 0s) and never earns the 2."""
    myopic = np.tile(greedy(STAY_OR_GO.reward), (3, 1))
    assert start_value(STAY_OR_GO, evaluate_policy(STAY_OR_GO, myopic, horizon=3)) == 0


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 3), st.floats(0, 0.97))
def test_value_iteration_policy_iteration_and_the_linear_solve_agree(seed, states, actions, gamma):
    table = random_table(seed, states, actions)
    by_values, by_policies = discounted_values(table, gamma, tolerance=1e-11), policy_iteration(table, gamma)
    np.testing.assert_allclose(by_values.v, by_policies.v, atol=1e-11)
    np.testing.assert_allclose(by_values.q, by_policies.q, atol=1e-11)
    np.testing.assert_array_equal(by_values.policy, by_policies.policy)
    solved = evaluate_policy(table, by_policies.policy, gamma=gamma)
    np.testing.assert_allclose(solved, by_policies.v, atol=1e-12)
    np.testing.assert_allclose(table.reward + gamma * table.transition @ solved, by_policies.q, atol=1e-12)


def test_policy_iteration_is_the_best_of_all_stationary_policies():
    """3 states, 3 actions: 27 policies, each by its own linear system."""
    table = random_table(1, actions=3)
    values = [evaluate_policy(table, policy, gamma=0.9) for policy in every_policy(3, 3)]
    np.testing.assert_allclose(policy_iteration(table, 0.9).v, np.max(values, 0), atol=1e-12)


def test_many_stationary_policies_are_evaluated_at_once():
    table, policies = random_table(1), every_policy(2, 3)
    each = [evaluate_policy(table, policy, gamma=0.9) for policy in policies]
    np.testing.assert_allclose(evaluate_policy(table, policies, gamma=0.9), each, atol=1e-13)
    np.testing.assert_allclose(evaluate_policy(table, np.eye(2)[policies], gamma=0.9), each, atol=1e-13)


def test_value_iteration_stops_within_its_tolerance_of_the_truth():
    """A loose tolerance is kept, and not by luck: with .01 asked for, the error is no rounding error."""
    table = random_table(2)
    error = np.abs(discounted_values(table, 0.99, tolerance=0.01).v - policy_iteration(table, 0.99).v).max()
    assert 1e-4 < error <= 0.01


def test_a_long_episode_approaches_the_discounted_value():
    """Truncation: gamma^200 is 7e-10 at .9; discounting as a chance to stop, so the reward of step h shrinks by it."""
    table, gamma, steps = random_table(3), 0.9, 200
    scale = gamma ** np.arange(steps)[:, None, None]
    unrolled = TabularMDP(np.broadcast_to(table.transition, (steps, 3, 2, 3)), table.reward * scale)
    np.testing.assert_allclose(optimal_values(unrolled).v[0], policy_iteration(table, gamma).v, atol=1e-7)


def test_probabilities_of_one_action_are_that_action_and_mixtures_average():
    """In state 0 with two steps left: go is worth 1, stay 0, half and half .5."""
    policy = np.array([[1, 0], [0, 0]])
    certain = np.eye(2)[policy]
    np.testing.assert_array_equal(
        evaluate_policy(STAY_OR_GO, certain, horizon=2), evaluate_policy(STAY_OR_GO, policy, horizon=2)
    )
    mixed = certain.copy()
    mixed[0, 0] = 0.5
    assert evaluate_policy(STAY_OR_GO, mixed, horizon=2)[0, 0] == 0.5
    np.testing.assert_allclose(evaluate_policy(STAY_OR_GO, np.full((2, 2), 0.5), gamma=0.5), [2 / 3, 2])  # v=.25v+.5


def test_evaluation_agrees_with_sampled_episodes():
    """20 000 episodes of 4 steps, returns in [0, 4]: the standard error is below .014, six of them .085."""
    table = random_table(4, horizon=4)
    policy = np.random.default_rng(0).integers(2, size=(4, 3))
    rng = np.random.default_rng(1)
    state, total = rng.choice(3, size=20_000, p=table.start), np.zeros(20_000)
    for h in range(4):
        action = policy[h, state]
        total += table.reward[h, state, action]
        state = (rng.random(20_000)[:, None] > table.transition[h, state, action].cumsum(-1)[:, :-1]).sum(-1)
    assert abs(total.mean() - start_value(table, evaluate_policy(table, policy))) < 6 * total.std() / 20_000**0.5


def test_a_linear_process_is_planned_on_its_table():
    mdp = make_simplex_mdp(states=4, actions=3, dim=2, horizon=3)
    table = TabularMDP(mdp.transition, mdp.reward)
    np.testing.assert_allclose(optimal_values(mdp).v, optimal_values(table).v, atol=1e-14)
    np.testing.assert_array_equal(optimal_values(mdp).policy, optimal_values(table).policy)


def test_ties_by_rounding_go_to_the_lowest_index():
    assert 0.1 + 0.2 > 0.3
    assert greedy(np.array([0.3, 0.1 + 0.2, 0.0])) == 0
    assert greedy(np.array([0.3, 0.3 + 1e-9])) == 1


TINY = make_linear_multiagent(seed=3, states=2, horizon=2)


def test_each_agents_value_is_that_of_its_own_reward():
    policy = np.random.default_rng(0).integers(4, size=(6, 12))
    mdp = make_linear_multiagent()
    values = vector_values(mdp, policy)
    assert values.shape == (7, 12, 2)
    for agent in range(2):
        own = mdp.scalarised(np.eye(2)[agent])
        np.testing.assert_allclose(values[..., agent], evaluate_policy(own, policy), atol=1e-14)


@pytest.mark.parametrize("seed", range(6))
def test_the_front_is_the_upper_hull_of_all_deterministic_policies(seed):
    """2 states, 2 steps, 4 joint actions: 4^4 = 256 policies; their hull by an algorithm of its own (Qhull)."""
    mdp = make_linear_multiagent(seed=seed, states=2, horizon=2)
    points = np.array([mdp.start @ vector_values(mdp, policy)[0] for policy in every_policy(4, 2, 2)])
    hull = points[ConvexHull(points).vertices]
    slopes = np.linspace(0, 1, 20_001)[:, None] * [1, -1] + [0, 1]
    upper = hull[np.unique((slopes @ hull.T).argmax(1))]
    front = convex_coverage_set(mdp)
    np.testing.assert_allclose(front.values, upper[np.argsort(upper[:, 0])], atol=1e-9)


@pytest.mark.parametrize("agents", [2, 3])
def test_each_vertex_is_what_its_policy_earns_and_is_optimal_for_its_weights(agents):
    mdp = make_linear_multiagent(actions_each=(2,) * agents)
    front = convex_coverage_set(mdp, divisions=5)
    np.testing.assert_allclose(front.weights.sum(1), 1)
    for values, weights, policy in zip(*front, strict=True):
        np.testing.assert_allclose(mdp.start @ vector_values(mdp, policy)[0], values, atol=1e-14)
        table = mdp.scalarised(weights)
        assert weights @ values == pytest.approx(start_value(table, optimal_values(table).v), abs=1e-9)


def test_no_weights_have_an_optimum_that_the_front_of_two_lacks():
    mdp = make_linear_multiagent(seed=1)
    front = convex_coverage_set(mdp)
    for first in np.linspace(0, 1, 101):
        weights = np.array([first, 1 - first])
        table = mdp.scalarised(weights)
        assert (front.values @ weights).max() == pytest.approx(start_value(table, optimal_values(table).v), abs=1e-9)


def test_the_vertices_of_two_are_ordered_and_strictly_convex():
    """Slopes between neighbours fall and are negative: no vertex is dominated, none lies on an edge."""
    values = convex_coverage_set(make_linear_multiagent(seed=2)).values
    steps = np.diff(values, axis=0)
    assert (steps[:, 0] > 0).all() and (steps[:, 1] < 0).all()
    assert (np.diff(steps[:, 1] / steps[:, 0]) < 0).all()


def one_state(rewards):
    """One step, one state: joint action j pays ``rewards[j]``, ``[n, 2]``; each agent has a feature for each j."""
    n = len(rewards)
    features = np.zeros((2, 1, n, 2 * n))
    for agent, action in product(range(2), range(n)):
        features[agent, 0, action, n * agent + action] = 0.6
    theta = np.asarray(rewards, float).T.reshape(1, 2 * n) / 0.6
    return LinearMultiagentMDP(features, np.full((1, n, 4), 0.25), theta, np.ones((1, 4, 1)), (1, n))


def test_points_on_an_edge_below_it_and_dominated_ones_are_no_vertices():
    """(1, 0), (0, 1) are the vertices; (.5, .5) is on their edge and (.4, .5) below it."""
    front = convex_coverage_set(one_state([[0.5, 0.5], [1, 0], [0.4, 0.5], [0, 1]]))
    np.testing.assert_allclose(front.values, [[0, 1], [1, 0]], atol=1e-12)


def test_a_tie_that_stops_on_an_edge_leaves_no_vertex_there():
    """At weights (.5, .5), where (0, 1) and (1, 0) tie, the other three are all worth .6, and (.5, .7) is the first."""
    front = convex_coverage_set(one_state([[0.5, 0.7], [0, 1], [0.3, 0.9], [0.7, 0.5], [1, 0]]))
    np.testing.assert_allclose(front.values, [[0, 1], [0.3, 0.9], [0.7, 0.5], [1, 0]], atol=1e-12)


@pytest.mark.parametrize("first", [[1, 0], [0, 1]])
def test_an_end_that_is_best_for_one_agent_but_dominated_is_left_out(first):
    """For weights (1, 0) the actions (1, 0) and (1, .5) tie at 1, and the tie goes to the first; likewise at (0, 1)."""
    others = [[1, 0.5], [0, 0.2], [0.5, 1]]
    front = convex_coverage_set(one_state([first, *others]))
    np.testing.assert_allclose(front.values, [[0.5, 1], [1, 0.5]], atol=1e-12)


def test_agents_who_agree_have_a_front_of_one_point():
    front = convex_coverage_set(one_state([[0.2, 0.1], [0.9, 0.8], [0, 0], [0.3, 0.3]]))
    np.testing.assert_allclose(front.values, [[0.9, 0.8]])
    np.testing.assert_array_equal(front.policies, [[[1]]])


def test_a_process_without_steps_asks_for_a_horizon():
    with pytest.raises(UserError, match="expected horizon=, its steps an episode"):
        optimal_values(STAY_OR_GO)
    with pytest.raises(UserError, match="horizon 0: expected 1 or more"):
        optimal_values(STAY_OR_GO, horizon=0)
    with pytest.raises(UserError, match="horizon 5: the process has 3 steps; leave horizon out"):
        optimal_values(random_table(0, horizon=3), horizon=5)


@pytest.mark.parametrize("tolerance", [0, -1, np.nan])
def test_value_iteration_refuses_a_tolerance_that_it_would_never_reach(tolerance):
    with pytest.raises(UserError, match=f"tolerance {tolerance}: expected more than 0"):
        discounted_values(STAY_OR_GO, 0.5, tolerance=tolerance)


def test_a_policy_is_evaluated_over_an_episode_or_discounted_and_not_both():
    with pytest.raises(UserError, match=r"horizon 3 and gamma 0\.5: expected one of them"):
        evaluate_policy(STAY_OR_GO, np.zeros(2, int), horizon=3, gamma=0.5)


def test_a_front_needs_points_on_its_lattice_and_as_many_weights_as_agents():
    mdp = make_linear_multiagent(actions_each=(2, 2, 2), states=2, horizon=2)
    with pytest.raises(UserError, match="divisions 0: expected 1 or more"):
        convex_coverage_set(mdp, divisions=0)
    with pytest.raises(UserError, match=r"weights \[2\]: expected \[3\], one for each agent"):
        mdp.scalarised(np.ones(2))


@pytest.mark.parametrize("planner", [discounted_values, policy_iteration])
def test_discounted_planners_refuse_a_discount_of_1_and_a_process_with_a_last_step(planner):
    with pytest.raises(UserError, match="gamma 1: expected 0 <= gamma < 1"):
        planner(STAY_OR_GO, 1)
    with pytest.raises(UserError, match=r"expected \[S, A, S\] for discounted values"):
        planner(random_table(0, horizon=3), 0.9)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.zeros((2, 2), int), r"policy \[2, 2\]: expected \[3, 2\], an action for each state"),
        (np.zeros((0, 3, 2), int), r"policy \[0, 3, 2\]: expected one or more"),
        (np.full((3, 2), 2), "policy: expected actions 0 to 1, got 2 to 2"),
        (np.full((3, 2), 0.5), r"policy \[3, 2\]: expected \[3, 2, 2\], a probability for each action"),
        (np.full((3, 2, 2), 0.4), r"policy\[0, 0\]: expected probabilities that sum to 1, got 0.8"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(policy, message):
    with pytest.raises(UserError, match=message):
        evaluate_policy(STAY_OR_GO, policy, horizon=3)


def test_a_joint_policy_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"policy \[1, 2\]: expected \[2, 2\]"):
        vector_values(TINY, np.zeros((1, 2), int))
    with pytest.raises(UserError, match="policy of float64: expected joint actions, integers"):
        vector_values(TINY, np.full((2, 2, 4), 0.25))


def test_linear_processes_have_a_last_step_and_no_discounted_values():
    with pytest.raises(UserError, match="a last step"):
        evaluate_policy(LinearMDP.one_hot(STAY_OR_GO, 2), np.zeros(2, int), gamma=0.5)
