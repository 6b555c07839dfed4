"""The paper's theorems beside what they bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from subsample_tools import random_system

from marl.classic.subsample.bounds import (
    bellman_noise,
    frequencies,
    frequency_bound,
    lipschitz_bound,
    optimality_bound,
    trivial_bound,
    variation_bound,
)
from marl.classic.subsample.demand import demand_response
from marl.classic.subsample.evaluate import gap
from marl.classic.subsample.multisets import MultisetIndex
from marl.classic.subsample.system import LocalGlobalSystem
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


def test_theorem_3_2_as_a_number():
    """gamma .5, r~ = 1 + 2 = 3, L = 2, A = 1, n = k = 1, noise .25:
    2 x 3 / .25 (sqrt(1 / 2 ln 4) + 1) + 2 x .25 / .5 = 24 (.8326 + 1) + 1 = 44.98."""
    system = LocalGlobalSystem(np.ones((1, 1, 1)), np.eye(2)[None], np.ones((1, 1)), np.array([[2.0, -1]]), 0.5)
    assert optimality_bound(system, 1, 1, 0.25) == pytest.approx(44.98, abs=0.005)
    assert trivial_bound(system) == 12
    with pytest.raises(UserError, match="k = 2 of n = 1"):
        optimality_bound(system, 1, 2)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from(["exact", "frozen"]))
@example(12, 0.9, "exact")
@example(3, 0.3, "frozen")
@settings(max_examples=15)
def test_the_gap_is_within_theorem_3_2_on_every_instance_tried(seed, gamma, backup):
    system, n = random_system(seed, gamma=gamma), 5
    optimum = SubsampleQ(system, n).solve(1e-7)
    for k in range(1, n + 1):
        table = SubsampleQ(system, k, backup, m=5, seed=seed).solve(1e-7)
        noise = bellman_noise(table, SubsampleQ(system, k).solve(1e-7))
        assert (noise < 1e-6) == (backup == "exact" or gamma == 0)
        assert -1e-5 <= gap(table, optimum).worst <= optimality_bound(system, n, k, noise)


def test_where_gamma_is_0_and_k_is_large_the_bound_says_more_than_nothing():
    system = random_system(0, gamma=0.0)
    assert optimality_bound(system, 1000, 100) < trivial_bound(system) < optimality_bound(system, 1000, 2)


def test_frequencies_in_a_sample_are_as_near_as_theorem_4_3_says():
    """Worst populations too: n = 40 agents in 5 states, k = 10, delta .1: in 9 of 10 samples at least."""
    rng, bound = np.random.default_rng(0), frequency_bound(5, 40, 10, 0.1)
    assert bound == pytest.approx(np.sqrt(31 / 800 * np.log(100)))
    for population in (np.repeat(np.arange(5), 8), np.repeat([0, 1], 20), rng.integers(5, size=40)):
        samples = rng.permuted(np.tile(population, (2000, 1)), axis=1)[:, :10]
        far = np.abs(frequencies(samples, 5) - frequencies(population, 5)).max(1)
        assert (far <= bound).mean() >= 0.9


def test_equation_13_is_not_a_theorem_and_half_of_l_times_theorem_4_3_is():
    """100 agents in 100 states, k = 50: half of the states are missed, so TV = 1/2 always; (13) says at most .1."""
    n = 100
    distance = np.abs(frequencies(np.arange(50), n) - frequencies(np.arange(n), n)).sum() / 2
    assert distance == pytest.approx(0.5)
    assert variation_bound(n, n, 50, delta=0.5) < 0.1 < distance <= n / 2 * frequency_bound(n, n, 50, delta=0.5)


def test_theorem_4_2_is_not_a_theorem_since_two_agents_at_x_are_worth_another_value_than_one():
    """At distance 0 the printed bound is 0."""
    system, x = demand_response(), np.arange(50)
    one, two = (SubsampleQ(system, k).solve(1e-6).q() for k in (1, 2))
    twice = MultisetIndex(50, 2).rank(np.column_stack([x, x]))
    assert lipschitz_bound(system, 0.0) == 0
    assert np.abs(one - two[:, :, twice]).max() > 0.5


def test_the_noise_of_few_resampled_sweeps_counts_what_their_rewards_lack():
    """Nothing moves, r = 1 + 2, gamma .5: Q* = 6. Q_1 = 2 (eta_1 = 1 / 1.5), of which r_l makes 2 x 2 / 3: 4 away."""
    system = LocalGlobalSystem(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1)), 2 * np.ones((1, 1)), 0.5)
    table, exact = SubsampleQ(system, 2, "resample").fit(1), SubsampleQ(system, 2).solve(1e-9)
    assert bellman_noise(table, exact) == pytest.approx(4)


def test_a_chance_that_is_none_is_refused():
    for delta in (0.0, 1.5, np.nan):
        with pytest.raises(UserError, match="expected a chance above 0, 1 at most"):
            frequency_bound(5, 40, 10, delta)


def test_noise_between_tables_of_different_k_is_refused():
    system = random_system(0)
    with pytest.raises(UserError, match="k = 1 against k = 2"):
        bellman_noise(SubsampleQ(system, 1), SubsampleQ(system, 2))
