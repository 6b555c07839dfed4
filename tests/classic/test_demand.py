"""Demand response: moves and rewards that can be checked in the head."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from marl.classic.subsample.cells import Cells
from marl.classic.subsample.demand import consumption_groups, demand_response
from marl.classic.subsample.system import LocalGlobalSystem, lump
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


def number(psi, consumed, desired):
    return ((psi - 1) * 5 + consumed - 1) * 5 + desired - 1


def outcomes(psi, consumed, desired, target):
    """(psi, s*, s-bar) -> chance of what follows."""
    row = demand_response().local_transition[target - 1, number(psi, consumed, desired)]
    return {(i // 25 + 1, i // 5 % 5 + 1, i % 5 + 1): round(float(row[i]), 12) for i in np.flatnonzero(row)}


def test_the_target_moves_by_the_action_and_is_clipped():
    moves = demand_response().global_transition.argmax(-1) + 1
    assert moves.tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 5]]


def test_a_desire_within_the_target_is_consumed_and_the_desire_walks():
    """Type 1, desire 2, target 3: consumes 2 for certain; the desire becomes 1 or 3."""
    assert outcomes(1, 5, 2, 3) == {(1, 2, 1): 0.5, (1, 2, 3): 0.5}


def test_a_desire_above_the_target_is_consumed_or_lowered():
    """Desire 5, target 3, consumes 4: 5, or 5 + 3 - 4 = 4. The desire becomes 4, or 6, clipped to 5."""
    assert outcomes(1, 4, 5, 3) == {(1, 4, 4): 0.25, (1, 4, 5): 0.25, (1, 5, 4): 0.25, (1, 5, 5): 0.25}


def test_type_two_desires_anything_next():
    """Desire 1, target 1: consumes 1, then each desire with 1/5."""
    assert outcomes(2, 3, 1, 1) == {(2, 1, d): 0.2 for d in range(1, 6)}


def test_what_is_lowered_stays_within_one_to_five():
    """Desire 2, target 1, consumes 5: 2, or 2 + 1 - 5 = -2, clipped to 1."""
    assert {s[1] for s in outcomes(2, 5, 2, 1)} == {1, 2}


def test_the_papers_rewards(caplog):
    """s_g = 3: 15 / 3 - 1 = 4 for lowering, 5 else; consuming 4 above it: 4 - .5; 3: 3. And a notice."""
    with caplog.at_level(logging.WARNING, logger="marl"):
        system = demand_response("paper")
    assert "k = 1 is optimal already" in caplog.text
    assert system.global_reward[2].tolist() == [4, 5, 5]
    assert [system.local_reward[2, number(1, c, 1)] for c in (3, 4)] == [3, 3.5]


def test_the_informative_rewards_say_nothing(caplog):
    """s_g = 4: 2 / 4 = .5, less .3 for a change; consuming 5 above it: 5 - 2 = 3."""
    system = demand_response()
    assert not caplog.records
    np.testing.assert_allclose(system.global_reward[3], [0.2, 0.5, 0.2])
    assert system.local_reward[3, number(2, 5, 1)] == 3


def test_with_the_papers_rewards_lowering_to_one_and_staying_is_optimal_everywhere():
    table = SubsampleQ(demand_response("paper"), 2).solve()
    chosen = np.split(table.policy, table.cells.start[1:-1])
    assert [set(actions.tolist()) for actions in chosen] == [{1}, {0}, {0}, {0}, {0}] or [
        set(a.tolist()) for a in chosen
    ] == [{0}, {0}, {0}, {0}, {0}]


def test_fifty_local_states_are_at_most_thirty_classes():
    """At s_g = 5 all desires are met: 5 desires x 2 types."""
    assert Cells(demand_response(), 1).count.tolist() == [30, 28, 19, 12, 10]


def test_the_lumped_system_sees_consumption_alone():
    """Target 5: consumption becomes the desire, uniform. Target 1: s* = 5 and s-bar = 5: 5, or 5 + 1 - 5 = 1."""
    system = demand_response(lumped=True)
    assert system.local_states == 5
    np.testing.assert_allclose(system.local_transition[4], 0.2)
    row = np.array([1 + 4 * 0.5, 0.5, 0.5, 0.5, 0.5]) / 5  # desires 2..5: kept, or lowered to 1 (5 + 1 - 5, clipped)
    np.testing.assert_allclose(system.local_transition[0, 4], row)
    assert consumption_groups()[number(2, 4, 1)] == 3


def test_lumping_states_that_move_alike_and_pay_alike_is_exact():
    """Two copies of one state: the lumped Q is the full one."""
    local = np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    parts = (np.ones((1, 2, 1)), local[None], np.array([[0.0, 1.0]]), np.array([[3.0, 3, 1]]))
    full, small = LocalGlobalSystem(*parts, 0.5), lump(LocalGlobalSystem(*parts, 0.5), np.array([0, 0, 1]), 2)
    table = SubsampleQ(full, 1).solve(1e-10).q()
    np.testing.assert_allclose(SubsampleQ(small, 1).solve(1e-10).q(), table[:, :, [0, 2]], atol=1e-8)


def test_unknown_types_and_empty_groups_are_refused():
    with pytest.raises(UserError, match="expected 1, 2 or both"):
        demand_response(types=(3,))
    with pytest.raises(UserError, match="choose from informative, paper"):
        demand_response("papers")
    with pytest.raises(UserError, match=r"use each of 0 \.\. 2"):
        lump(demand_response(), consumption_groups() // 4, 3)
