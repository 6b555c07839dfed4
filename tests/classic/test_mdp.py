"""Processes check what they are told, and are what they were told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.mdp import HeterogeneousLinearMDP, LinearMDP, LinearMultiagentMDP, TabularMDP
from marl.types import UserError


def coin(**changes):
    """One step, two states, two actions, two features: action a leads to state a, and pays theta[a]."""
    arrays = {
        "features": np.tile(np.eye(2), (2, 1, 1)),
        "theta": np.array([[0.25, 0.75]]),
        "mu": np.eye(2)[None],
        "start": None,
    }
    return arrays | changes


def pair(**changes):
    """Two agents with two actions each, one step: agent m is paid .5 where the joint action's digit m is 1."""
    digits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # joint action 2 is agent 0 at 1, agent 1 at 0
    rewards = 0.5 * np.eye(2)[:, None, None, :] * digits.T[:, None, :, None]  # agent m has feature m
    arrays = {
        "reward_features": np.tile(rewards, (1, 2, 1, 1)),
        "transition_features": np.full((2, 4, 2), 0.4),
        "theta": np.array([[1.0, 1.0]]),
        "mu": 1.25 * np.eye(2)[None],
        "actions_each": (2, 2),
    }
    return arrays | changes


def test_a_linear_process_has_the_transitions_and_rewards_of_its_features():
    """Half of each feature: half of each reward, (.25 + .75) / 2 = .5, and each state with probability .5."""
    mdp = LinearMDP(**coin(features=np.full((2, 1, 2), 0.5)))
    np.testing.assert_allclose(mdp.reward, [[[0.5], [0.5]]])
    np.testing.assert_allclose(mdp.transition, np.full((1, 2, 1, 2), 0.5))
    assert (mdp.states, mdp.actions, mdp.dim, mdp.horizon) == (2, 1, 2, 1)
    np.testing.assert_array_equal(mdp.start, [1, 0])


def test_the_table_of_a_linear_process_has_no_negative_probability_left_from_rounding():
    mdp = LinearMDP(**coin(mu=np.array([[[1 + 1e-10, -1e-10], [0, 1]]])))
    assert mdp.transition.min() < 0
    assert mdp.tabular.transition.min() == 0
    np.testing.assert_allclose(mdp.tabular.transition.sum(-1), 1, rtol=1e-15)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**16))
def test_any_table_is_a_linear_process_with_one_hot_features(states, actions, horizon, stationary, seed):
    rng = np.random.default_rng(seed)
    shape = (states, actions) if stationary else (horizon, states, actions)
    table = TabularMDP(rng.dirichlet(np.ones(states), shape), rng.uniform(size=shape), rng.dirichlet(np.ones(states)))
    mdp = LinearMDP.one_hot(table, horizon if stationary else None)
    assert (mdp.dim, mdp.horizon) == (states * actions, horizon)
    np.testing.assert_array_equal(mdp.transition, np.broadcast_to(table.transition, mdp.transition.shape))
    np.testing.assert_array_equal(mdp.reward, np.broadcast_to(table.reward, mdp.reward.shape))
    np.testing.assert_array_equal(mdp.start, table.start)


def test_feature_x_times_actions_plus_a_belongs_to_state_x_and_action_a():
    mdp = LinearMDP.one_hot(TabularMDP(np.full((3, 2, 3), 1 / 3), np.zeros((3, 2))), 1)
    assert mdp.features[2, 1].argmax() == 2 * 2 + 1


def test_a_stationary_table_has_no_horizon_and_one_hot_asks_for_it():
    table = TabularMDP(np.ones((1, 1, 1)), np.ones((1, 1)))
    assert table.horizon is None
    with pytest.raises(UserError, match="horizon None: expected the steps of an episode, 1 or more"):
        LinearMDP.one_hot(table)
    with pytest.raises(UserError, match="horizon 3: expected the steps of an episode, 2"):
        LinearMDP.one_hot(TabularMDP(np.ones((2, 1, 1, 1)), np.ones((2, 1, 1))), 3)


def test_a_table_whose_one_hot_features_would_fill_the_memory_is_refused():
    """2 states, 1 action: 2 x 2 numbers of features and 20 million steps of 2 x 2 measures."""
    table = TabularMDP(np.full((2, 1, 2), 0.5), np.zeros((2, 1)))
    with pytest.raises(UserError, match=r"\[2, 40000002\]: 80000004 numbers, expected 50000000 at most"):
        LinearMDP.one_hot(table, 20_000_000)


def test_members_of_a_heterogeneous_process_have_their_own_features_and_common_theta():
    """Agent 1's actions are swapped: its action 0 pays what agent 0's action 1 pays."""
    features = np.stack([np.tile(np.eye(2), (2, 1, 1)), np.tile(np.eye(2)[::-1], (2, 1, 1))])
    mdp = HeterogeneousLinearMDP(**coin(features=features))
    assert (mdp.agents, mdp.states, mdp.actions, mdp.dim, mdp.horizon) == (2, 2, 2, 2, 1)
    np.testing.assert_array_equal(mdp.members[0].reward[0, 0], [0.25, 0.75])
    np.testing.assert_array_equal(mdp.members[1].reward[0, 0], [0.75, 0.25])
    np.testing.assert_array_equal(mdp.members[1].transition[0, 0], np.eye(2)[::-1])


def test_a_heterogeneous_process_names_the_agent_that_breaks_a_condition():
    features = np.stack([np.tile(np.eye(2), (2, 1, 1)), 2 * np.tile(np.eye(2), (2, 1, 1))])
    with pytest.raises(UserError, match=r"agent 1: features\[0, 0\]: expected a norm of 1 at most, got 2"):
        HeterogeneousLinearMDP(**coin(features=features))


def test_the_joint_action_has_the_first_agent_as_its_most_significant_digit():
    """Joint action 2 = (1, 0): agent 0 gets 1 x .5 x 1 = .5, agent 1 nothing."""
    mdp = LinearMultiagentMDP(**pair())
    np.testing.assert_array_equal(mdp.reward[0, 0], [[0, 0], [0, 0.5], [0.5, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(mdp.transition, np.full((1, 2, 4, 2), 0.5))
    assert (mdp.agents, mdp.states, mdp.actions, mdp.dim, mdp.horizon) == (2, 2, 4, 4, 1)


def test_joint_features_hold_each_agents_rewards_above_the_common_transition():
    """Definition 5: r = Phi^T [theta; 0] and 1 P = Phi^T [0; mu]."""
    mdp = LinearMultiagentMDP(**pair())
    assert mdp.joint_features.shape == (2, 4, 4, 2)
    np.testing.assert_allclose(np.einsum("xadm,d->xam", mdp.joint_features, [1, 1, 0, 0]), mdp.reward[0])
    stacked = np.einsum("xadm,dy->xamy", mdp.joint_features, np.concatenate([np.zeros((2, 2)), mdp.mu[0]]))
    np.testing.assert_allclose(stacked, np.repeat(mdp.transition[0][:, :, None], 2, 2))


def test_a_scalarised_process_pays_the_weighted_reward():
    """Weights (.2, .8) at joint action 1: .8 x .5 = .4."""
    table = LinearMultiagentMDP(**pair()).scalarised(np.array([0.2, 0.8]))
    np.testing.assert_allclose(table.reward[0, 0], [0, 0.4, 0.1, 0.5])


BAD_TABLES = {
    r"transition\[1, 0\]: expected probabilities that sum to 1, got 0.9": ([[[1, 0]], [[0.5, 0.4]]], [[0], [0]]),
    r"transition\[0, 0, 1\]: expected a probability, got -0.1": ([[[1.1, -0.1]], [[0, 1]]], [[0], [0]]),
    r"transition\[0, 0, 0\]: expected a probability, got nan": ([[[np.nan, 1]], [[0, 1]]], [[0], [0]]),
    r"reward: expected finite numbers, got inf": ([[[1, 0]], [[0, 1]]], [[np.inf], [0]]),
    r"transition \[2, 1, 2\] and reward \[1, 1\]: expected \[H, S, A, S\]": ([[[1, 0]], [[0, 1]]], [[0]]),
    r"transition leads to 1 states, but there are 2": ([[[1]], [[1]]], [[0], [0]]),
    r"reward \[0, 2\]: expected one state, action and step or more": (np.ones((1, 1, 1)), np.zeros((0, 2))),
    r"transition: expected an array of numbers, got 'left'": ("left", [[0]]),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_a_table_that_is_no_process_is_refused_with_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        TabularMDP(*BAD_TABLES[message])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([1.0], r"start \[1\]: expected \[2\]"),
        ([0.5, 0.4], "start: expected probabilities that sum to 1, got 0.9"),
        ([np.nan, 1.0], r"start\[0\]: expected a probability, got nan"),
    ],
)
def test_a_start_that_is_no_distribution_is_refused(start, message):
    with pytest.raises(UserError, match=message):
        TabularMDP(np.tile(np.eye(2)[:, None], (1, 1, 1)), np.zeros((2, 1)), np.array(start))


BAD_LINEAR = {
    r"features\[0, 0\]: expected a norm of 1 at most, got 2": {"features": np.tile(2 * np.eye(2), (2, 1, 1))},
    r"features\[0, 0\]: expected a norm of 1 at most, got nan": {"features": np.full((2, 2, 2), np.nan)},
    r"features @ mu\[0, 0, 0\]: expected probabilities that sum to 1, got 0.5": {"mu": np.eye(2)[None] / 2},
    r"features @ theta: expected rewards in \[0, 1\], got \[0, 1.1\]": {"theta": np.array([[0, 1.1]])},
    r"features @ theta: expected rewards in \[0, 1\], got \[nan, nan\]": {"theta": np.array([[np.nan, 0]])},
    r"theta \[1, 3\]: expected \[1, 2\], \[H, d\]": {"theta": np.zeros((1, 3))},
    r"features \[2, 2, 2\] and mu \[1, 3, 2\]: expected": {"mu": np.ones((1, 3, 2))},
    r"mu's total masses at step 0: expected a norm of sqrt\(2\) = 1.414 at most, got 2.828": {
        "features": np.tile(np.eye(2) / 2, (2, 1, 1)),
        "mu": 2 * np.eye(2)[None],
    },
    r"theta at step 0: expected a norm of sqrt\(2\) = 1.414 at most, got 2": {
        "features": np.full((2, 2, 2), 0.5),
        "theta": np.array([[2**0.5, -(2**0.5)]]),
    },
}


@pytest.mark.parametrize("message", BAD_LINEAR)
def test_a_linear_process_that_breaks_definition_1_is_refused_with_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        LinearMDP(**coin(**BAD_LINEAR[message]))
    assert "\n" not in str(caught.value)


# All-ones reward features: Phi^T Phi = (2 + .32) 11^T, whose largest eigenvalue is 4.64 = 2.154^2.
BAD_PAIRS = {
    r"Phi\(x, a\): expected a spectral norm of 1 at most, got 2.154": {"reward_features": np.ones((2, 2, 4, 2))},
    r"actions_each \(2, 3\): expected 2 numbers whose product is 4": {"actions_each": (2, 3)},
    r"actions_each \(4,\): expected 2 numbers whose product is 4": {"actions_each": (4,)},
    r"theta \[1, 3\]: expected \[1, 2\], \[H, d1\]": {"theta": np.ones((1, 3))},
    r"reward_features \[2, 2, 3, 2\] and transition_features \[2, 4, 2\]": {"reward_features": np.zeros((2, 2, 3, 2))},
    r"reward_features @ theta: expected rewards in \[0, 1\], got \[-0.5, 0\]": {"theta": -np.ones((1, 2))},
    r"mu's total masses at step 0: expected a norm of sqrt\(4\) = 2 at most, got 2.828": {
        "transition_features": np.full((2, 4, 2), 0.25),
        "mu": 2 * np.eye(2)[None],
    },
}


@pytest.mark.parametrize("message", BAD_PAIRS)
def test_a_multiagent_process_that_breaks_definition_5_is_refused_with_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        LinearMultiagentMDP(**pair(**BAD_PAIRS[message]))
    assert "\n" not in str(caught.value)
