import math

import numpy as np
import pytest

from marl.classic.continuous_lsvi import ContinuousCoopLSVI
from marl.classic.instances import make_continuous_mdp
from marl.classic.lsvi import Bonus
from marl.classic.ridge import LogDetTrigger
from marl.types import UserError

LOCK = make_continuous_mdp(n=3, horizon=5)


def team(threshold=5.0, agents=3, beta=1.0, **settings):
    return ContinuousCoopLSVI(LOCK, agents, trigger=LogDetTrigger(threshold), bonus=Bonus(beta=beta), **settings)


@pytest.mark.parametrize("threshold", [0.0, 5.0, math.inf])
def test_plans_are_those_of_the_whole_history_row_by_row(threshold):
    agents = team(threshold, replan=1.0, regulariser=0.5)
    agents.fit(20)
    common = agents._common
    for m in range(3):
        weights, inverse = np.zeros((6, LOCK.dim)), np.zeros((6, LOCK.dim, LOCK.dim))
        for h in reversed(range(5)):
            whole, target = 0.5 * np.eye(LOCK.dim), np.zeros(LOCK.dim)
            for n in range(3):
                for t in range(20 if n == m else common):
                    phi, value = agents._phi[n, t, h], 0.0
                    if h < 4:
                        bonus = [np.sqrt(f @ inverse[h + 1] @ f) for f in agents._after[n, t, h]]
                        q = agents._after[n, t, h] @ weights[h + 1] + bonus
                        value = min(q.max(), 5 - (h + 1))
                    whole += np.outer(phi, phi)
                    target += phi * (phi @ LOCK.theta + value)
            inverse[h] = np.linalg.inv(whole)
            weights[h] = inverse[h] @ target
        np.testing.assert_allclose(agents._weights[m], weights[:5], rtol=0, atol=1e-9)


@pytest.mark.parametrize("threshold", [0.0, math.inf])
def test_with_the_constants_of_the_theory_the_upper_value_is_never_below_the_optimum(threshold):
    agents = ContinuousCoopLSVI(LOCK, 2, trigger=LogDetTrigger(threshold))
    for _ in range(4):
        assert (agents.upper >= agents.optimum).all()
        agents.fit(15)


def test_agents_that_share_learn_the_lock_and_pay_less_than_isolated_ones():
    together, alone = (team(threshold, agents=4, seed=1) for threshold in (5.0, math.inf))
    for agents in (together, alone):
        agents.fit(200)
    assert together.gap.max() < 1e-9
    assert together.regret.sum() < 0.5 * alone.regret.sum()
    assert 0 < together.communication.rounds < 20


def test_messages_are_transitions():
    agents = team(0.0, agents=2)
    agents.fit(3)
    # 3 rounds of 2 agents x 5 steps: 10 transitions of 4 numbers up, of 5 numbers down to both
    assert agents.communication.floats_up == 3 * 10 * 4
    assert agents.communication.floats_down == 3 * 10 * 5 * 2
    assert agents.communication.transition_floats == agents.communication.floats
    assert (agents.statistics.count == 2 * 3).all()


def test_fitting_in_pieces_and_through_a_stored_state_gives_the_same_bits():
    whole, pieces, resumed = (team(seed=2) for _ in range(3))
    whole.fit(40)
    pieces.fit(25)
    state = pieces.state_dict()
    pieces.fit(15)
    resumed.load_state_dict(state)
    resumed.fit(15)
    for other in (pieces, resumed):
        np.testing.assert_array_equal(other.regret, whole.regret)
        np.testing.assert_array_equal(other._weights, whole._weights)
        assert other.communication == whole.communication


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: team(agents=0), "agents: expected 1 or more, got 0"),
        (lambda: team(replan=0.5), "replan: expected a factor of 1 or more, got 0.5"),
        (lambda: team().fit(-2), "n_episodes: expected 0 or more, got -2"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
