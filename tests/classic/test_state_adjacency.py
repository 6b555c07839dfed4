import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl.classic.adjacency import LARGEST_PAIRWISE, Adjacency, observation_matrix
from marl.types import UserError


def sets(adjacency):
    return [adjacency.members[a:b].tolist() for a, b in zip(adjacency.offsets, adjacency.offsets[1:], strict=False)]


def test_ring_and_line_are_the_numbers_next_to_a_state():
    assert sets(Adjacency.ring(4)) == [[1, 3], [0, 2], [1, 3], [0, 2]]
    assert sets(Adjacency.line(4)) == [[1], [0, 2], [1, 3], [2]]
    assert sets(Adjacency.ring(3, itself=True)) == [[0, 1, 2]] * 3
    assert sets(Adjacency.line(3, itself=True)) == [[0, 1], [0, 1, 2], [1, 2]]
    assert sets(Adjacency.ring(2)) == [[1], [0]]  # its two neighbours are one state
    assert sets(Adjacency.ring(1)) == sets(Adjacency.line(1)) == [[0]]
    assert Adjacency.ring(4).weights.tolist() == [0.5] * 8


def test_groups_hold_the_states_with_the_same_number():
    adjacency = Adjacency.from_groups([7, -1, 7, 3, 7])
    assert sets(adjacency) == [[0, 2, 4], [1], [0, 2, 4], [3], [0, 2, 4]]
    assert adjacency.weights[:3].tolist() == [1 / 3] * 3


def test_a_hidden_coordinate_groups_the_states_that_differ_in_it_alone():
    # states (x, y, z) of 2 x 3 x 2 in rows: number 6 x + 2 y + z; hiding y joins 0, 2, 4
    assert sets(Adjacency.hidden((2, 3, 2), 1))[:2] == [[0, 2, 4], [1, 3, 5]]
    assert sets(Adjacency.hidden((2, 3, 2), -1))[:2] == [[0, 1], [0, 1]]


def test_hidden_is_the_uniform_version_of_level_1_on_that_coordinate():
    grid = np.stack(np.meshgrid(np.arange(1, 3), np.arange(1, 4), indexing="ij"), -1).reshape(-1, 2)
    # seen without its hidden coordinate a state is at distance 0 from the whole group
    assert sets(Adjacency.observed(grid, [True, False], level=0)) == sets(Adjacency.hidden((2, 3), 1))


def test_observed_weights_fall_by_e_for_each_coordinate_that_differs():
    # the example of Remark 1: [a, b, c] and [a, b, d] of one global state are at distance 2
    states = [[1, 2, 3, 4], [1, 2, 3, 4]]
    masks = [[True, True, True, False], [True, True, False, True]]
    assert sets(Adjacency.observed(states, masks, level=1)) == [[0], [1]]
    adjacency = Adjacency.observed(states, masks, level=2)
    assert sets(adjacency) == [[0, 1], [0, 1]]
    far = np.exp(-2) / (1 + np.exp(-2))
    assert adjacency.weights == pytest.approx([1 - far, far, far, 1 - far])


@given(st.integers(0, 2**31), st.integers(0, 3))
def test_observed_is_definition_2_literally(seed, level):
    rng = np.random.default_rng(seed)
    values, masks = rng.integers(1, 3, (7, 3)), rng.random((7, 3)) < 0.7
    adjacency = Adjacency.observed(values, masks, level)
    lifted = []
    for value, mask in zip(values, masks, strict=True):
        pi = observation_matrix(np.flatnonzero(mask), 3)
        lifted.append(pi.T @ (pi @ value))
    for s in range(7):
        distances = [np.count_nonzero(lifted[s] - other) for other in lifted]
        raw = [np.exp(3 - rho) if rho <= level else 0.0 for rho in distances]
        assert adjacency.matrix.toarray()[s] == pytest.approx(np.array(raw) / sum(raw))


def test_average_is_the_weighted_mean_for_any_leading_axes():
    rng = np.random.default_rng(0)
    adjacency = Adjacency.observed(rng.integers(1, 3, (6, 3)), [True] * 3, 2)
    table = rng.random((2, 5, 6, 4))
    expected = np.einsum("sy,mnya->mnsa", adjacency.matrix.toarray(), table)
    assert adjacency.average(table) == pytest.approx(expected)


def test_stationary_law_of_a_line_is_proportional_to_the_number_of_neighbours():
    assert Adjacency.line(4).stationary == pytest.approx(np.array([1, 2, 2, 1]) / 6)
    assert Adjacency.ring(6).stationary == pytest.approx([1 / 6] * 6)  # of an even ring too, which has period 2


def test_classes_are_separate_and_each_has_its_own_law():
    adjacency = Adjacency.from_groups([0, 1, 0, 0])
    assert adjacency.classes.tolist() == [0, 1, 0, 0]
    assert adjacency.stationary == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])


def test_the_blockers_size_takes_neighbour_lists_and_no_matrix():
    adjacency = Adjacency.hidden((28, 28, 28, 3), 0)  # 65 856 states
    assert len(adjacency.members) == 65_856 * 28
    assert sum(each.nbytes for each in (adjacency.offsets, adjacency.members, adjacency.weights)) < 32e6
    assert adjacency.members[:28].tolist() == list(range(0, 65_856, 28 * 28 * 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adjacency([0, 1, 1], [0]), r"S#\(1\) is empty"),
        (lambda: Adjacency([0, 1], [3]), "expected states from 0 to 0, got 3"),
        (lambda: Adjacency([0, 1, 2], [-1, 1]), "expected states from 0 to 1, got -1"),
        (lambda: Adjacency([0, 2], [0]), "offsets"),
        (lambda: Adjacency.observed(np.ones((3, 2)), [True] * 3, 1), r"observed \[3\]: expected \[3, 2\] or \[2\]"),
        (lambda: Adjacency.observed([[np.nan, 1.0]], [True] * 2, 1), "states: expected finite numbers, got nan"),
        (lambda: Adjacency([0, 1], [0], [-1.0]), "weights: expected 1 positive"),
        (lambda: Adjacency.from_groups(np.zeros((2, 2))), "groups"),
        (lambda: Adjacency.hidden((2, 2), 2), "coordinate: expected 0 to 1, got 2"),
        (lambda: Adjacency.observed(np.ones((2, 2)), [True, True], -1), "level"),
        (lambda: Adjacency.observed(np.ones((LARGEST_PAIRWISE + 1, 1)), [True], 0), "from_groups takes any number"),
        (lambda: Adjacency.ring(0), "states: expected 1 or more"),
        (lambda: observation_matrix([3], 3), "coordinates: expected 0 to 2"),
    ],
)
def test_bad_adjacency_is_refused_in_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
