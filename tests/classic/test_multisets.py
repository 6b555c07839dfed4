"""Numbers of multisets: a bijection, in the stated order, and the tables built on it."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.subsample.multisets import MultisetIndex, advance_multiset, lift, multiset_means, rank_in_place
from marl.types import UserError

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def everything(states, k):
    """All ascending multisets, ordered by their largest element, then the next largest, and so on."""
    return np.array(sorted(combinations_with_replacement(range(states), k), key=lambda s: s[::-1]))


def test_six_pairs_of_three_states_are_numbered_by_their_largest_element():
    """00, 01, 11, 02, 12, 22; for instance 12: C(1, 1) + C(3, 2) = 1 + 3 = 4."""
    index = MultisetIndex(3, 2)
    assert index.size == 6
    assert index.unrank(np.arange(6)).tolist() == [[0, 0], [0, 1], [1, 1], [0, 2], [1, 2], [2, 2]]
    assert index.rank(np.array([2, 1])) == 4
    assert index.counts(np.array(4)).tolist() == [0, 1, 1]


@given(SIZES)
@settings(max_examples=30)
def test_rank_and_unrank_are_inverse_and_in_order(size):
    states, k = size
    index = MultisetIndex(states, k)
    assert index.size == comb(states + k - 1, k)
    elements = index.unrank(np.arange(index.size))
    np.testing.assert_array_equal(elements, everything(states, k))
    np.testing.assert_array_equal(index.rank(elements[:, ::-1]), np.arange(index.size))
    repeated = [np.repeat(np.arange(states), counts) for counts in index.counts(np.arange(index.size))]
    np.testing.assert_array_equal(repeated, elements)


@given(SIZES)
@settings(max_examples=30)
def test_a_table_says_where_a_multiset_goes_when_a_state_is_added(size):
    states, k = size
    table = MultisetIndex(states, k).insertions
    for j in range(k):
        found = table.flat[table.start[j] : table.start[j + 1]].reshape(states, -1)
        smaller = everything(states, j) if j else np.zeros((1, 0), int)
        for x in range(states):
            larger = np.column_stack([smaller, np.full(len(smaller), x)]).astype(np.int64)
            np.testing.assert_array_equal(found[x], MultisetIndex(states, j + 1).rank(larger))


@given(SIZES)
@settings(max_examples=30)
def test_walking_means_and_compiled_ranks_agree_with_the_slow_way(size):
    states, k = size
    index, walked = MultisetIndex(states, k), np.zeros(k, np.int64)
    weights, means = np.arange(states) ** 2.0, np.empty(index.size)
    multiset_means(weights, k, means)
    for number, elements in enumerate(everything(states, k)):
        assert walked.tolist() == elements.tolist()
        shuffled = np.random.default_rng(number).permutation(elements).astype(np.int64)
        assert rank_in_place(shuffled, states, np.zeros(states, np.int64), index.binomials) == number
        assert means[number] == pytest.approx(np.mean(elements**2))
        advance_multiset(walked)


def test_many_elements_are_ranked_by_counting_as_few_are_by_sorting():
    elements = np.random.default_rng(0).integers(3, size=30)
    index = MultisetIndex(3, 30)
    assert rank_in_place(elements.copy(), 3, np.zeros(3, np.int64), index.binomials) == index.rank(elements)


def test_lifting_takes_the_mean_over_what_is_left_without_one_element():
    """f(0) = 10, f(1) = 20, f(2) = 40: 01 -> (20 + 10) / 2 = 15, 22 -> 40, 12 -> (40 + 20) / 2 = 30."""
    index, out = MultisetIndex(3, 2), np.empty(6)
    lift(np.array([10.0, 20.0, 40.0]), 2, index.binomials, out)
    assert out.tolist() == [10, 15, 20, 25, 30, 40]


def test_a_mean_over_elements_is_lifted_to_itself():
    index = MultisetIndex(4, 5)
    four, five, out = np.empty(MultisetIndex(4, 4).size), np.empty(index.size), np.empty(index.size)
    weights = np.array([3.0, -1, 4, 1])
    multiset_means(weights, 4, four)
    multiset_means(weights, 5, five)
    lift(four, 5, index.binomials, out)
    np.testing.assert_allclose(out, five, atol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MultisetIndex(0, 2), "expected 1 or more of both"),
        (lambda: MultisetIndex(1000, 50), "too many to number"),
        (lambda: MultisetIndex(3, 2).rank(np.array([0, 3])), "element 3: expected 0 to 2"),
        (lambda: MultisetIndex(3, 2).rank(np.array([0, 1, 1])), "a multiset of 3 elements: expected 2"),
        (lambda: MultisetIndex(3, 2).unrank(np.array([6])), "multiset 6: expected 0 to 5"),
    ],
)
def test_what_is_no_multiset_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
