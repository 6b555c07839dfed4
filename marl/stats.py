"""Summaries of a few seeds: what to report beside every number, with its formula.

Seeds lie along the first axis; whatever follows (time, tasks, ...) is summarised position by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


class Interval(NamedTuple):
    """``low <= high``, each of the shape of the statistic."""

    low: Array
    high: Array


def mean(values: Array, axis: int = 0) -> Array:
    """Arithmetic mean along ``axis``."""
    return np.asarray(np.mean(values, axis=axis))


def iqm(values: Array, axis: int = 0) -> Array:
    """Interquartile mean: the mean of what is left when floor(n / 4) values at either end are dropped.

    With fewer than four values it is the mean. Less noisy than the median, less moved by one failed seed than the
    mean (Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021).
    """
    n = values.shape[axis]
    ordered = np.sort(values, axis=axis)
    return mean(np.take(ordered, range(n // 4, n - n // 4), axis=axis), axis)


def standard_error(values: Array) -> Array:
    """``s / sqrt(n)`` with the sample deviation ``s`` (divisor n - 1) along axis 0; nan for a single value."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(np.std(values, axis=0, ddof=1) / np.sqrt(n))


def t_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t with ``degrees`` of freedom stays below with ``probability``."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def t_interval(values: Array, level: float = 0.95) -> Interval:
    """Student's interval of the mean: ``mean -+ t * standard error``, t the (1 + level) / 2 quantile at n - 1 degrees.

    Exact for normally distributed values; nan for a single value.
    """
    half = t_quantile((1 + level) / 2, max(len(values) - 1, 1)) * standard_error(values)
    return Interval(mean(values) - half, mean(values) + half)


def bootstrap(
    *strata: Array,
    statistic: Callable[..., Array] = iqm,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Stratified percentile bootstrap interval of a statistic.

    Each resample draws, from every stratum by itself and with replacement, as many values as the stratum has; the
    statistic is taken over all of them together; the interval runs from the (1 - level) / 2 to the (1 + level) / 2
    quantile of the resampled statistics (Efron and Tibshirani, 1993, chapter 13). One stratum is the plain bootstrap;
    tasks as strata keep every task's weight. All positions behind axis 0 share the draws. With one value per stratum
    nothing varies and the interval has no width: treat it as unknown.

    Args:
        strata: ``[n_k, ...]`` each.
        statistic: called as ``statistic(values, axis=1)`` on ``[resamples, n_1 + n_2 + ..., ...]``.
        level: the share of the resamples inside.
        resamples: their number.
        seed: equal seeds give equal intervals.
    """
    generator = np.random.default_rng(seed)
    draws = [values[generator.integers(len(values), size=(resamples, len(values)))] for values in strata]
    statistics = statistic(np.concatenate(draws, axis=1), axis=1)
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(np.asarray(low), np.asarray(high))


def common_grid(curves: Sequence[tuple[Array, Array]], points: int = 400) -> tuple[Array, Array]:
    """Bring learning curves onto the steps that all of them cover.

    Args:
        curves: (steps ``[T_k]`` ascending, values ``[T_k]``) of each seed.
        points: the most steps to return; longer curves are thinned evenly, keeping both ends.

    Returns:
        Steps ``[T]`` and values ``[n, T]``, linearly interpolated where a curve lacks a step. T is 0 where the curves
        have no common range.
    """
    start, stop = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= start) & (grid <= stop)]
    if len(grid) > points:
        grid = grid[np.linspace(0, len(grid) - 1, points).round().astype(int)]
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves])
