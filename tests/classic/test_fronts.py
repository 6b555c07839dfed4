"""Hypervolume, dominance and utility losses against numbers to check in the head, and against slow definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from marl.classic.fronts import (
    bayes_regret,
    domination,
    hypervolume,
    maximum_utility_loss,
    non_dominated,
    utility,
)
from marl.types import UserError

ONE = np.ones((1, 2))


def point_sets(objectives: int, most: int = 6):
    """Integer points, so that ties and repetitions happen."""
    numbers = st.integers(0, 5).map(float)
    return st.integers(1, most).flatmap(lambda k: arrays(np.float64, (k, objectives), elements=numbers))


def union_by_inclusion_and_exclusion(points, reference):
    """Two boxes meet in the box of the componentwise minima: + single boxes - pairs + triples ..."""
    boxes = np.maximum(points - reference, 0)
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in combinations(boxes, size):
            total -= (-1) ** size * np.prod(np.min(chosen, axis=0))
    return total


def test_three_stairs_have_an_area_of_six():
    """Slices of height 1: widths 3, 2 and 1."""
    points = np.array([[3, 1], [2, 2], [1, 3]])
    assert hypervolume(points, [0, 0]) == 6
    assert hypervolume(points, [1, 1]) == 1, "only (2, 2) exceeds the reference in both: 1 x 1"


def test_points_that_are_dominated_equal_or_below_the_reference_add_nothing():
    points = np.array([[3, 1], [2, 2], [1, 3], [2, 1], [2, 2], [9, -1]])
    assert hypervolume(points, [0, 0]) == 6
    assert hypervolume(np.array([[-1.0, 5.0]]), [0, 0]) == 0


def test_two_boxes_in_three_dimensions_count_their_intersection_once():
    """2 x 1 x 1 and 1 x 2 x 1 share the unit cube: 2 + 2 - 1."""
    assert hypervolume(np.array([[2, 1, 1], [1, 2, 1]]), [0, 0, 0]) == 3
    assert hypervolume(np.array([[4.0], [7.0]]), [2.0]) == 5


@settings(max_examples=60)
@given(st.sampled_from([1, 2, 3, 4]).flatmap(point_sets))
def test_the_hypervolume_is_that_of_inclusion_and_exclusion(points):
    reference = np.ones(points.shape[1])
    assert hypervolume(points, reference) == pytest.approx(union_by_inclusion_and_exclusion(points, reference))


@settings(max_examples=40)
@given(point_sets(3), point_sets(3))
def test_more_points_never_have_less_volume(points, more):
    both = np.concatenate([points, more])
    assert hypervolume(both, np.zeros(3)) >= hypervolume(points, np.zeros(3))


def test_a_reference_taken_from_the_points_themselves_compares_nothing():
    """The usual bug: each set's own worst values as its reference. The better set then looks worse."""
    poor, rich = np.array([[1.0, 0.0], [0.0, 1.0]]) + 0.1, np.array([[5.0, 5.0]])
    own = [hypervolume(points, points.min(0) - 0.1) for points in (poor, rich)]
    assert own[0] > own[1]
    assert hypervolume(poor, [0, 0]) < hypervolume(rich, [0, 0])


def test_a_policy_between_two_vertices_may_raise_the_hypervolume_but_no_utility():
    """(.4, .4) lies under the line from (0, 1) to (1, 0): no weights prefer it, yet its box is .16, theirs are flat."""
    vertices = np.array([[0.0, 1.0], [1.0, 0.0]])
    inside = np.array([[0.4, 0.4]])
    assert hypervolume(vertices, [0, 0]) == 0
    assert hypervolume(inside, [0, 0]) == pytest.approx(0.16)
    assert maximum_utility_loss(np.concatenate([vertices, inside]), vertices) == pytest.approx(0)
    assert maximum_utility_loss(inside, vertices) == pytest.approx(0.6), "at (1, 0): 1 - .4"


def test_equal_points_are_both_kept_and_dominated_ones_are_not():
    points = np.array([[1, 3], [2, 2], [2, 2], [1, 2], [2, 1]])
    assert non_dominated(points).tolist() == [True, True, True, False, False]


@settings(max_examples=60)
@given(point_sets(3))
def test_non_dominated_is_the_definition(points):
    expected = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert non_dominated(points).tolist() == expected


def test_domination_is_the_least_lead_in_any_objective():
    """(3, 3) beats (1, 2) by 2 and 1; nothing beats (0, 5) in both."""
    front = np.array([[3.0, 3.0], [4.0, 0.0]])
    assert domination(np.array([[1.0, 2.0], [0.0, 5.0]]), front).tolist() == [1.0, -2.0]


def test_the_utility_loss_of_one_compromise_is_at_the_ends():
    """max(v, 1 - v) - .5 is largest at v = 0 or 1."""
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert maximum_utility_loss(np.array([[0.5, 0.5]]), front) == pytest.approx(0.5)


def test_the_utility_loss_of_two_ends_is_where_both_are_worth_the_same():
    """At v = (.5, .5) both ends are worth .5, the compromise (.8, .8) is worth .8."""
    front = np.array([[0.0, 1.0], [0.8, 0.8], [1.0, 0.0]])
    assert maximum_utility_loss(front[[0, 2]], front) == pytest.approx(0.3)


@settings(max_examples=40)
@given(point_sets(2), point_sets(2))
def test_the_utility_loss_is_the_best_of_a_fine_grid_of_weights(points, front):
    """Integers to 5: points are worth the same at weights k / n with n <= 10; the grid of 1 / 2520 has them all."""
    share = np.linspace(0, 1, 2521)
    weights = np.stack([share, 1 - share], axis=1)
    lack = (weights @ front.T).max(1) - (weights @ points.T).max(1)
    assert maximum_utility_loss(points, front) == pytest.approx(lack.max(), abs=1e-9)


@settings(max_examples=15)
@given(point_sets(2), point_sets(2))
def test_the_linear_program_for_three_objectives_agrees_where_the_third_is_worth_nothing_new(points, front):
    """The third objective repeats the second, so that its weight can be given to the second."""
    wide = [np.column_stack([values, values[:, 1]]) for values in (points, front)]
    assert maximum_utility_loss(*wide) == pytest.approx(maximum_utility_loss(points, front), abs=1e-7)


def test_bayes_regret_of_a_compromise_by_hand():
    """Lacks .5, 0 and .5 at the weights (0, 1), (.5, .5), (1, 0)."""
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    weights = np.array([[0, 1], [0.5, 0.5], [1, 0]])
    assert bayes_regret(np.array([[0.5, 0.5]]), front, weights) == pytest.approx(1 / 3)
    assert bayes_regret(front, front, weights) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hypervolume(np.ones((2, 2)), [0, 0, 0]), r"reference \[3\]: expected \[2\]"),
        (lambda: hypervolume(np.ones((2, 2)), [0, np.nan]), "reference: expected finite"),
        (lambda: hypervolume(np.ones(2), [0, 0]), r"points \[2\]: expected \[K, M\]"),
        (lambda: non_dominated(np.ones((0, 2))), "one row or more"),
        (lambda: domination(np.array([[1.0, np.inf]]), np.ones((1, 2))), "in row 0"),
        (lambda: maximum_utility_loss(np.ones((1, 2)), np.ones((1, 3))), "2 objectives, the front has 3"),
        (lambda: bayes_regret(ONE, ONE, np.ones((4, 3))), r"weights \[4, 3\]: expected \[n, 2\], one row or more"),
        (lambda: bayes_regret(ONE, ONE, np.ones(2)), r"weights \[2\]: expected \[n, 2\], one row or more"),
        (lambda: bayes_regret(ONE, ONE, np.ones((0, 2))), r"weights \[0, 2\]: expected \[n, 2\], one row or more"),
        (lambda: bayes_regret(ONE, ONE, [[0.5, np.nan]]), "weights: expected finite numbers of 0 or more, got nan"),
        (lambda: bayes_regret(ONE, ONE, [[-1, 2]]), "weights: expected finite numbers of 0 or more, got -1"),
        (
            lambda: bayes_regret(ONE, ONE, [[1, 0], [1]]),
            r"weights: expected an array of numbers, got \[\[1, 0\], \[1\]\]",
        ),
        (lambda: utility(ONE, np.ones((4, 3))), r"weights \[4, 3\]: expected \[n, 2\], one row or more"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
