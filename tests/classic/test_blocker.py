"""Blocker: the rules by hand-worked positions and against a plain re-telling, and the exact planner."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.mdp import TabularMDP
from marl.classic.planning import discounted_values
from marl.classic.worlds.blocker import best_returns, make_blocker, moved_gap
from marl.classic.worlds.landmarks import make_landmarks
from marl.classic.worlds.world import DOWN, LEFT, RIGHT, UP
from marl.types import UserError

WORLDS = {blockers: make_blocker(blockers) for blockers in (1, 2, 3)}


def state_of(*cells: tuple[int, int], gap: int) -> np.ndarray:
    return np.array([*itertools.chain.from_iterable(cells), gap])


def retold(cells: list[tuple[int, int]], gap: int, actions: list[int]) -> tuple[list[tuple[int, int]], int, bool]:
    """The rules once more with sets and lists: the blockers' move, then each agent's."""
    candidates = [3 * c for c in range(len(cells))]
    attacked = {column for row, column in cells if row == 2}
    if gap in attacked:
        scan = [c for c in reversed(candidates) if c < gap] + [c for c in candidates if c > gap]
        gap = next((c for c in scan if c not in attacked), gap)
    cells, entered = list(cells), False
    for i, action in enumerate(actions):
        row, column = cells[i]
        wish = {UP: (row - 1, column), DOWN: (row + 1, column), LEFT: (row, column - 1), RIGHT: (row, column + 1)}[
            action
        ]
        allowed = {(r, c) for r in range(3) for c in range(candidates[-1] + 1)} | {(3, gap)}
        if wish in allowed - set(cells):
            cells[i] = wish
        entered |= cells[i][0] == 3
    return cells, gap, entered


@pytest.mark.parametrize(
    ("columns", "gap", "moved"),
    [
        ((), 3, 3),  # nobody attacks
        ((0, 6), 3, 3),  # the gap itself is not attacked
        ((1, 2, 4), 3, 3),  # columns between the candidates are none
        ((3,), 3, 0),  # left comes before right
        ((0,), 0, 3),  # nothing on the left: the first on the right
        ((0, 3), 0, 6),  # 3 is attacked as well
        ((3, 6), 6, 0),  # from 6 to the left: 3 is attacked, 0 is not
        ((6, 0), 6, 3),
        ((0, 3), 3, 6),  # left is attacked, so right
        ((0, 3, 6), 3, 3),  # all attacked: it stays
    ],
)
def test_the_gap_moves_to_the_first_candidate_that_is_not_attacked_left_then_right(columns, gap, moved):
    away = [(0, c) for c in (1, 2, 4)]
    cells = [(2, c) for c in columns] + away[len(columns) :]
    assert moved_gap(state_of(*cells, gap=gap), 3) == moved


def test_with_three_blockers_the_scan_to_the_right_goes_on_past_an_attacked_candidate():
    """k = 3, candidates 0, 3, 6, 9; the gap 3 and both its neighbours are attacked: left 0 no, right 6 no, 9 yes."""
    assert moved_gap(state_of((2, 0), (2, 3), (2, 6), (0, 0), gap=3), 4) == 9


@pytest.mark.parametrize("gap", [0, 3, 6])
def test_three_attackers_force_an_entry_wherever_the_gap_is(gap):
    world = make_blocker()
    after = world.step(state_of((2, 0), (2, 3), (2, 6), gap=gap), [DOWN] * 3)
    rows = after.state[:6:2]
    assert (rows == 3).sum() == 1 and rows[gap // 3] == 3
    assert after.reward.tolist() == [1, 1, 1] and after.terminated.all()


def test_two_agents_of_two_are_needed_against_one_blocker_in_every_position():
    """k = 1, candidates 0 and 3: of all states and joint actions only those with both attacked lead to an entry."""
    world = make_blocker(1)
    cells = list(itertools.product(range(3), range(4)))
    for a, b in itertools.permutations(cells, 2):
        for gap, moves in itertools.product((0, 3), itertools.product(range(4), repeat=2)):
            after = world.step(state_of(a, b, gap=gap), moves)
            forced = {a, b} == {(2, 0), (2, 3)} and moves[[a, b].index((2, gap))] == DOWN
            assert after.terminated.all() == forced and (after.reward == (1 if forced else -1)).all()


def test_blockers_move_before_agents():
    """The agent above the gap steps down, but the gap has gone to 3. Agents first, the usual slip, would let it in."""
    after = make_blocker().step(state_of((2, 0), (0, 3), (0, 6), gap=0), [DOWN, UP, UP])
    assert after.state.tolist() == [2, 0, 0, 3, 0, 6, 3] and not after.terminated.any()


def test_agents_move_by_index_so_that_the_first_frees_the_cell_for_the_second_and_not_the_other_way():
    world = make_blocker()
    behind = world.step(state_of((0, 0), (0, 1), (0, 6), gap=0), [RIGHT, RIGHT, UP])  # 0 runs into 1, then 1 goes on
    assert behind.state[:4].tolist() == [0, 0, 0, 2]
    ahead = world.step(state_of((0, 1), (0, 0), (0, 6), gap=0), [RIGHT, RIGHT, UP])
    assert ahead.state[:4].tolist() == [0, 2, 0, 1]


def test_moves_off_the_grid_are_none_and_cost_a_step():
    after = make_blocker().step(state_of((0, 0), (0, 6), (1, 3), gap=0), [UP, RIGHT, DOWN])
    assert after.state.tolist() == [0, 0, 0, 6, 2, 3, 0] and after.reward.tolist() == [-1, -1, -1]


@settings(max_examples=300)
@given(st.data())
def test_a_step_is_the_rules_retold(data):
    agents = data.draw(st.integers(2, 4))
    cells = list(itertools.product(range(3), range(3 * agents - 2)))
    places = data.draw(st.lists(st.sampled_from(cells), min_size=agents, max_size=agents, unique=True))
    gap = 3 * data.draw(st.integers(0, agents - 1))
    actions = data.draw(st.lists(st.integers(0, 3), min_size=agents, max_size=agents))
    wanted, wanted_gap, entered = retold(places, gap, actions)
    before = state_of(*places, gap=gap)
    after = WORLDS[agents - 1].step(before, actions)
    assert after.state.tolist() == state_of(*wanted, gap=wanted_gap).tolist()
    assert (after.terminated == entered).all() and (after.reward == (1 if entered else -1)).all()
    assert before.tolist() == state_of(*places, gap=gap).tolist()


def test_an_agent_sees_itself_first_then_the_others_in_order_then_the_gaps_number():
    views = make_blocker().view(state_of((0, 1), (1, 2), (2, 5), gap=6))
    assert views.tolist() == [[0, 1, 1, 2, 2, 5, 2], [1, 2, 0, 1, 2, 5, 2], [2, 5, 0, 1, 1, 2, 2]]


def test_an_agents_row_of_the_table_is_its_view_as_a_number_and_two_agents_that_change_places_change_rows():
    """Sizes 4, 4, 4, 4, 2 (k = 1): (0, 1, 2, 3, 1) is (((0 x 4 + 1) x 4 + 2) x 4 + 3) x 2 + 1 = 55."""
    world = make_blocker(1)
    one, other = state_of((0, 1), (2, 3), gap=3), state_of((2, 3), (0, 1), gap=3)
    assert world.index(one)[0] == 55
    assert world.index(one).tolist() == world.index(other)[::-1].tolist()


def test_adjacent_states_differ_in_the_hidden_coordinate_alone():
    """k = 1: state 54 is row 55 with the gap's number 0."""
    world = make_blocker(1)
    adjacency = world.adjacency("gap")
    assert adjacency.members[adjacency.offsets[55] : adjacency.offsets[56]].tolist() == [54, 55]
    assert np.allclose(adjacency.weights, 0.5)
    with pytest.raises(UserError, match="no coordinate 'gaps'; did you mean 'gap'"):
        world.adjacency("gaps")


def test_starts_are_the_listed_ones_equally_often():
    """k = 1: 4 x 3 ordered pairs of columns x 2 gaps = 24; 12 000 draws, 500 of each, standard deviation 22."""
    world, rng = make_blocker(1), np.random.default_rng(0)
    drawn = [tuple(world.start(rng)) for _ in range(12_000)]
    listed = [tuple(start) for start in world.starts]
    assert len(listed) == 24 and set(drawn) == set(listed)
    assert all(abs(drawn.count(start) - 500) < 110 for start in listed)


def test_the_best_return_is_two_steps_down_the_longest_walk_sideways_and_the_entry():
    """Sorted columns c go to 0, 3, 6: T = 2 + max |c_i - 3i| + 1 steps, -(T - 1) + 1 in all; columns 0, 3, 6: -1."""
    world = make_blocker()
    columns = np.sort(world.starts[:, 1:6:2], axis=1)
    assert best_returns(world).tolist() == (-1.0 - np.abs(columns - [0, 3, 6]).max(1)).tolist()


def test_the_planner_agrees_with_value_iteration_on_the_joint_process():
    """With discount .9, T steps are worth -(1 - .9^(T-1)) / .1 + .9^(T-1)."""
    world, joint = make_blocker(1), list(itertools.product(range(4), repeat=2))
    cells = list(itertools.product(range(3), range(4)))
    places = [state_of(a, b, gap=gap) for a, b in itertools.permutations(cells, 2) for gap in (0, 3)]
    number = {tuple(place): n for n, place in enumerate(places)}
    over = len(places)
    transition, reward = np.zeros((over + 1, 16, over + 1)), np.zeros((over + 1, 16))
    transition[over, :, over] = 1.0
    for (place, n), (a, actions) in itertools.product(number.items(), enumerate(joint)):
        after = world.step(np.array(place), actions)
        reward[n, a] = after.reward[0]
        transition[n, a, over if after.terminated.any() else number[tuple(after.state)]] = 1.0
    values = discounted_values(TabularMDP(transition, reward), 0.9).v
    steps = 2 - best_returns(world)
    expected = -(1 - 0.9 ** (steps - 1)) / 0.1 + 0.9 ** (steps - 1)
    np.testing.assert_allclose(values[[number[tuple(start)] for start in world.starts]], expected, atol=1e-7)


def test_where_the_horizon_is_too_short_the_best_return_is_minus_the_horizon():
    """The shortest entry takes 3 steps; in 2 steps there is none."""
    assert set(best_returns(make_blocker(horizon=2))) == {-2.0}


def test_a_world_with_too_many_states_to_list_can_still_be_played():
    """k = 12: 13 agents, 37 columns; (4 x 37)^13 x 13 states, about 2e29."""
    world = make_blocker(12)
    assert world.states == (4 * 37) ** 13 * 13
    after = world.step(world.start(np.random.default_rng(0)), [DOWN] * 13)
    assert after.state[:26:2].tolist() == [1] * 13


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_blocker(0), "blockers: expected a whole number of 1 or more, got 0"),
        (lambda: make_blocker(2.5), "blockers: .* got 2.5"),
        (lambda: make_blocker(2, horizon=0), "horizon: expected"),
        (lambda: make_blocker().step(WORLDS[2].starts[0], [9, 9, 9]), r"3 numbers from 0 to 3, got \[9, 9, 9\]"),
        (lambda: make_blocker().step(WORLDS[2].starts[0], [-1, 0, 0]), r"from 0 to 3, got \[-1, 0, 0\]"),
        (lambda: make_blocker().step(WORLDS[2].starts[0], [DOWN]), r"action: expected 3 numbers"),
        (lambda: make_blocker().step(np.zeros(3, int), [DOWN] * 3), r"state: expected \[7\], got \[3\]"),
        (lambda: best_returns(make_blocker(3)), "expected Blocker with at most .* got blocker with 2621440000"),
        (lambda: best_returns(make_landmarks()), "got landmarks"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
