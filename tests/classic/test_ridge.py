import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.ridge import LogDetTrigger, RidgeStatistics, ridge_weights, square_bonus
from marl.types import UserError


def filled(shape=(2,), dim=3, states=4, rows=5, seed=0, regulariser=1.0):
    rng = np.random.default_rng(seed)
    statistics = RidgeStatistics(shape, dim, states, regulariser)
    for index in np.ndindex(*shape):
        for _ in range(rows):
            statistics.rank1_update(index, unit(rng, dim), rng.random(), rng.integers(states))
    return statistics


def unit(rng, dim):
    phi = rng.normal(size=dim)
    return phi / np.linalg.norm(phi)


def bonus_sq(statistics, features):
    """``phi^T Lambda^-1 phi`` ``[*shape, K]`` of the rows of ``features`` ``[K, d]``."""
    return np.einsum("...kd,kd->...k", features @ statistics.inverse, features)


def test_one_row_gives_the_numbers_of_pencil_and_paper():
    statistics = RidgeStatistics((1,), dim=2, states=2)
    growth = statistics.rank1_update((0,), np.array([1.0, 0.0]), reward=0.5, next_state=1)
    assert growth == pytest.approx(np.log(2))  # det [[2, 0], [0, 1]] / det I
    assert statistics.log_det[0] == pytest.approx(np.log(2))
    np.testing.assert_allclose(statistics.inverse[0], [[0.5, 0], [0, 1]])
    # weights: Lambda^-1 (b + N V) = (.5 (.5 + 4), 0)
    np.testing.assert_allclose(statistics.weights(np.array([[0.0, 4.0]])), [[2.25, 0.0]])
    # .6^2 / 2 + .8^2 / 1 = .82
    np.testing.assert_allclose(bonus_sq(statistics, np.array([[0.6, 0.8]])), [[0.82]])


def test_ten_thousand_updates_leave_the_same_as_from_scratch():
    rng = np.random.default_rng(1)
    dim, states = 6, 5
    statistics = RidgeStatistics((), dim, states, regulariser=0.7)
    phis = np.array([unit(rng, dim) for _ in range(10_000)])
    rewards, next_states = rng.random(10_000), rng.integers(states, size=10_000)
    for phi, reward, y in zip(phis, rewards, next_states, strict=True):
        statistics.rank1_update((), phi, reward, y)

    whole = phis.T @ phis + 0.7 * np.eye(dim)
    values = rng.random(states)
    np.testing.assert_allclose(statistics.inverse, np.linalg.inv(whole), rtol=0, atol=1e-8 / len(phis))
    assert abs(statistics.log_det - np.linalg.slogdet(whole)[1]) < 1e-8
    targets = phis.T @ (rewards + values[next_states])
    np.testing.assert_allclose(statistics.weights(values), np.linalg.solve(whole, targets), rtol=0, atol=1e-8)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 2**32 - 1), st.floats(0.01, 10))
def test_the_growth_of_log_det_is_that_of_slogdet(dim, rows, seed, regulariser):
    statistics = filled((), dim, 2, rows, seed, regulariser)
    phi = unit(np.random.default_rng(seed + 1), dim)
    whole = statistics.gram + regulariser * np.eye(dim)
    expected = np.linalg.slogdet(whole + np.outer(phi, phi))[1] - np.linalg.slogdet(whole)[1]
    assert statistics.rank1_update((), phi, 0.0, 0) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_more_rows_never_widen_a_bonus(dim, rows, seed):
    features = np.random.default_rng(seed).normal(size=(4, dim))
    before = filled((), dim, 2, rows, seed)
    after = filled((), dim, 2, rows + 1, seed)  # the same rows and one more
    assert (bonus_sq(after, features) <= bonus_sq(before, features) + 1e-12).all()
    assert (bonus_sq(before, features) >= 0).all()


@pytest.mark.parametrize(
    ("phi", "reward", "next_state", "message"),
    [
        (np.ones(2), 1.0, 0, r"row: phi \[2\] and next state 0; expected \[3\] and a state from 0 to 3"),
        (np.ones(3), 1.0, 4, r"row: phi \[3\] and next state 4; expected \[3\] and a state from 0 to 3"),
        (np.ones(3), 1.0, -1, "next state -1"),
        (np.array([np.nan, 0.0, 0.0]), 1.0, 0, "row: expected finite numbers, got phi nan, 0, 0 and reward 1"),
        (np.ones(3), np.inf, 0, "row: expected finite numbers, got phi 1, 1, 1 and reward inf"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_changes_nothing(phi, reward, next_state, message):
    """Compiled code looks at no bounds: it would write into other arrays."""
    statistics, before = filled((), 3, 4), filled((), 3, 4)
    with pytest.raises(UserError, match=message) as caught:
        statistics.rank1_update((), phi, reward, next_state)
    assert "\n" not in str(caught.value)
    for name, value in before.state_dict().items():
        np.testing.assert_array_equal(getattr(statistics, name), value)


def test_a_row_of_a_list_of_integers_is_a_row():
    statistics = RidgeStatistics((), 2, 2)
    assert statistics.rank1_update((), [1, 0], 1, 0) == pytest.approx(np.log(2))


def test_merging_is_learning_from_both_and_regularises_once():
    first, second = filled(rows=5, seed=3), filled(rows=7, seed=4)
    gram = first.gram + second.gram
    naive = np.linalg.inv(first.inverse) + np.linalg.inv(second.inverse)  # the usual bug: lambda I twice
    first.merge(second)
    np.testing.assert_allclose(first.inverse, np.linalg.inv(gram + np.eye(3)), atol=1e-12)
    np.testing.assert_allclose(first.log_det, np.linalg.slogdet(gram + np.eye(3))[1])
    assert np.abs(np.linalg.inv(naive) - first.inverse).max() > 0.01
    assert first.count.tolist() == [12, 12]


def test_merging_others_in_any_order_is_the_same():
    parts = [filled(rows=4, seed=seed) for seed in (5, 6)]
    swapped = [filled(rows=4, seed=seed) for seed in (6, 5)]
    parts[0].merge(parts[1])
    swapped[0].merge(swapped[1])
    np.testing.assert_array_equal(parts[0].inverse, swapped[0].inverse)


def test_merging_statistics_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"shape \(2,\), d = 3, S = 5 into \(2,\), d = 3, S = 4"):
        filled(states=4).merge(filled(states=5))


def test_the_kernels_and_the_batch_give_the_same():
    statistics = filled((2, 3), 4, 5)
    features, values = np.random.default_rng(7).normal(size=(6, 4)), np.arange(5.0)
    bonus, weights = bonus_sq(statistics, features), statistics.weights(values)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(square_bonus(statistics.inverse[i], features), bonus[i])
        kernel = ridge_weights(statistics.inverse[i], statistics.reward_sum[i], statistics.next_sum[i], values)
        np.testing.assert_allclose(kernel, weights[i])


def test_reset_forgets_all():
    statistics = filled()
    statistics.reset()
    fresh = RidgeStatistics((2,), 3, 4)
    for name in fresh.state_dict():
        np.testing.assert_array_equal(getattr(statistics, name), getattr(fresh, name))


def test_a_stored_state_comes_back_bit_for_bit():
    statistics, other = filled(seed=8), filled(seed=9)
    kept = statistics.state_dict()
    statistics.rank1_update((0,), np.eye(3)[0], 1.0, 0)  # what was kept is a copy
    other.load_state_dict({name: np.array(json.loads(json.dumps(a.tolist()))) for name, a in kept.items()})
    for name, value in filled(seed=8).state_dict().items():
        np.testing.assert_array_equal(getattr(other, name), value)
    with pytest.raises(UserError, match=r"gram \[2, 3, 3\]: expected \[1, 3, 3\]"):
        RidgeStatistics((1,), 3, 4).load_state_dict(kept)


@pytest.mark.parametrize("regulariser", [0, -1, float("nan"), float("inf")])
def test_a_regulariser_that_is_none_is_refused(regulariser):
    with pytest.raises(UserError, match="regulariser: expected a number above 0"):
        RidgeStatistics((), 2, 2, regulariser)


def test_the_trigger_fires_when_growth_times_episodes_exceeds_the_threshold():
    trigger = LogDetTrigger(2.0)
    assert not trigger.due(0.5, 3)  # .5 <= 2 / 3
    assert not trigger.due(0.5, 4)  # .5 = 2 / 4, not more
    assert trigger.due(0.5, 5)  # .5 > 2 / 5
    assert LogDetTrigger(0.0).due(1e-9, 1)
    assert not LogDetTrigger(float("inf")).due(1e9, 10**9)
    with pytest.raises(UserError, match="threshold: expected 0 or more"):
        LogDetTrigger(-1.0)
    with pytest.raises(UserError, match="threshold"):
        LogDetTrigger(float("nan"))
