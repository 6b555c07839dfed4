"""Statistics against numbers worked out by hand, closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marl.stats import bootstrap, common_grid, iqm, mean, standard_error, t_interval


@pytest.mark.parametrize(
    "values, answer",
    [
        ([4.0], 4.0),
        ([1.0, 2.0, 6.0], 3.0),  # floor(3 / 4) = 0 dropped: the mean
        ([100.0, 1.0, 3.0, -50.0], 2.0),  # one dropped at either end: (1 + 3) / 2
        ([0.0, 1.0, 2.0, 3.0, 100.0], 2.0),  # (1 + 2 + 3) / 3
        ([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0], 2.5),  # two at either end: (1 + 2 + 3 + 4) / 4
    ],
)
def test_the_iqm_drops_a_quarter_at_either_end(values, answer):
    assert iqm(np.array(values)) == answer


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(-1e6, 1e6)))
def test_the_iqm_is_scipys_trimmed_mean(values):
    np.testing.assert_allclose(iqm(values), scipy.stats.trim_mean(values, 0.25), rtol=1e-9, atol=1e-6)


def test_one_failed_seed_moves_the_mean_and_not_the_iqm():
    seeds = np.array([10.0, 10.0, 10.0, 10.0, -1000.0])
    assert iqm(seeds) == 10 and mean(seeds) == -192


def test_the_standard_error_divides_by_n_minus_one():
    # 2, 4, 6: squares of deviations 4 + 0 + 4 = 8; 8 / 2 = 4; s = 2; 2 / sqrt(3)
    assert standard_error(np.array([2.0, 4.0, 6.0])) == pytest.approx(2 / np.sqrt(3))
    assert np.isnan(standard_error(np.array([[2.0, 3.0]]))).all()  # one seed tells nothing of its spread


def test_the_t_interval_of_two_values_has_the_cauchy_quantile():
    # One degree of freedom is the Cauchy distribution: its 0.75 quantile is tan(pi / 4) = 1.
    # -1, 1: mean 0, s = sqrt(2), standard error 1. So the 50 % interval is -1 .. 1.
    low, high = t_interval(np.array([-1.0, 1.0]), level=0.5)
    assert (low, high) == (pytest.approx(-1.0), pytest.approx(1.0))


def test_the_t_interval_covers_the_true_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(5, 4000))
    low, high = t_interval(samples, level=0.9)
    # 4000 trials: standard error sqrt(.9 * .1 / 4000) = .0047
    assert ((low <= 3) & (high >= 3)).mean() == pytest.approx(0.9, abs=0.02)


def test_the_bootstrap_of_the_mean_matches_its_closed_form():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap(values, statistic=mean, resamples=4000)
    # The resampled mean is nearly normal with deviation sqrt(sum of squared deviations) / n.
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_the_bootstrap_of_two_values_is_the_binomial():
    # Resamples of (0, 1): means 0, 1/2, 1 with 1/4, 1/2, 1/4. The 40 % interval runs from the 0.3 to the 0.7 quantile:
    # both lie in the middle half. The 60 % interval's ends, 0.2 and 0.8, lie in the outer quarters.
    values = np.array([0.0, 1.0])
    assert bootstrap(values, statistic=mean, level=0.4) == (0.5, 0.5)
    assert bootstrap(values, statistic=mean, level=0.6) == (0.0, 1.0)


def test_strata_are_resampled_by_themselves():
    tasks = [np.full(3, 0.0), np.full(3, 100.0)]  # no spread within a task
    assert bootstrap(*tasks, statistic=mean) == (50.0, 50.0)
    low, high = bootstrap(np.concatenate(tasks), statistic=mean)  # the usual mistake: pooled, it seems to vary
    assert low < 30 and high > 70


def test_equal_seeds_give_equal_intervals_and_positions_are_summarised_one_by_one():
    values = np.random.default_rng(2).normal(size=(6, 3))
    together = bootstrap(values, seed=4)
    assert together.low.shape == (3,)
    for position in range(3):
        alone = bootstrap(values[:, position], seed=4)
        assert (alone.low, alone.high) == (together.low[position], together.high[position])


def test_curves_meet_on_the_steps_that_all_cover():
    steps, values = common_grid(
        [(np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])), (np.array([5.0, 15.0]), np.array([7.0, 9.0]))]
    )
    assert steps.tolist() == [5, 10, 15]
    assert values.tolist() == [[0.5, 1.0, 1.5], [7.0, 8.0, 9.0]]


def test_long_curves_are_thinned_and_keep_both_ends():
    line = np.arange(10_001.0)
    steps, values = common_grid([(line, 2 * line)], points=11)
    assert steps.tolist() == [1000.0 * i for i in range(11)] and values[0].tolist() == (2 * steps).tolist()


def test_curves_without_a_common_step_give_nothing():
    steps, values = common_grid([(np.array([0.0, 1.0]), np.zeros(2)), (np.array([5.0, 6.0]), np.zeros(2))])
    assert steps.shape == (0,) and values.shape == (2, 0)
