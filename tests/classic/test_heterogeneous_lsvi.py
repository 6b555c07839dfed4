import math

import numpy as np
import pytest
from lsvi_reference import Reference

from marl.classic.coop_lsvi import CoopLSVI, HeterogeneousCoopLSVI
from marl.classic.instances import make_heterogeneous_locks, make_value_shift
from marl.classic.lsvi import Bonus
from marl.classic.mdp import LinearMDP
from marl.classic.ridge import LogDetTrigger
from marl.types import UserError

LOCKS = make_heterogeneous_locks(agents=4, groups=2, n=3, horizon=5)


def team(processes=LOCKS, threshold=5.0, beta=2.0, **settings):
    return HeterogeneousCoopLSVI(processes, trigger=LogDetTrigger(threshold), bonus=Bonus(beta=beta), **settings)


@pytest.mark.parametrize("processes", [LOCKS, make_value_shift(3, states=4, actions=2, dim=3, horizon=3)])
@pytest.mark.parametrize("threshold", [0.0, 4.0])
def test_sums_without_history_give_what_the_papers_box_gives_with_it(processes, threshold):
    agents, states = processes.features.shape[:2]
    rows = processes.features.reshape(agents * states, *processes.features.shape[2:])
    fast = team(processes, threshold, seed=1)
    slow = Reference(processes.members, rows, np.arange(agents), threshold, Bonus(beta=2.0), seed=1)
    for _ in range(15):
        fast.fit(1)
        slow.episode()
        np.testing.assert_allclose(fast.q, slow.q, rtol=0, atol=1e-9)
        assert fast.communication.rounds == slow.rounds


def test_agents_that_are_all_alike_live_as_in_algorithm_1():
    alike = make_heterogeneous_locks(agents=3, groups=1)
    several = team(alike, seed=2)
    one = CoopLSVI(alike.members[0], 3, trigger=LogDetTrigger(5.0), bonus=Bonus(beta=2.0), seed=2)
    for agents in (several, one):
        agents.fit(80)
    states = one.states
    for n in range(3):  # every agent believes the same of all
        np.testing.assert_allclose(several.q[:, :, n * states : (n + 1) * states], one.q, rtol=0, atol=1e-9)
    np.testing.assert_allclose(several.regret, one.regret, rtol=1e-12)
    assert several.communication.rounds == one.communication.rounds


def test_a_rows_value_is_that_of_the_agent_who_lived_it():
    """Agents 0 and 2 are of one group, 1 and 3 of the other: after a synchronisation all believe the same of each."""
    agents = team(threshold=0.0, seed=3)
    agents.fit(40)
    q = agents.q.reshape(4, LOCKS.theta.shape[0], 4, agents.states, agents.actions)
    np.testing.assert_array_equal(q, np.broadcast_to(q[:1], q.shape))
    np.testing.assert_allclose(q[0, :, 0], q[0, :, 2], rtol=0, atol=1e-12)
    assert np.abs(q[0, :, 0] - q[0, :, 1]).max() > 0.1
    known = agents.statistics.next_sum[0, 0].sum(0).reshape(4, agents.states).sum(1)
    np.testing.assert_allclose(known, 40)  # successors are kept with their agent's name


@pytest.mark.parametrize("processes", [LOCKS, make_heterogeneous_locks(), make_value_shift()])
@pytest.mark.parametrize("threshold", [0.0, 5.0, math.inf])
def test_with_the_constants_of_the_theory_the_upper_value_is_never_below_the_optimum(processes, threshold):
    agents = HeterogeneousCoopLSVI(processes, trigger=LogDetTrigger(threshold), seed=4)
    for _ in range(4):
        assert (agents.upper >= agents.optimum - 1e-9).all()
        agents.fit(30)


def test_pooling_locks_that_differ_fails_where_algorithm_3_learns_faster_than_alone():
    processes = make_heterogeneous_locks(agents=6, groups=2)
    blind = [LinearMDP.one_hot(member.tabular) for member in processes.members]
    pooled = CoopLSVI(blind, trigger=LogDetTrigger(5.0), bonus=Bonus(beta=2.0), seed=5)
    teams = {"pooled": pooled, "alone": team(processes, math.inf, seed=5), "together": team(processes, 5.0, seed=5)}
    regret = {}
    for name, agents in teams.items():
        agents.fit(800)
        regret[name] = agents.regret.mean()
    assert 2 * regret["together"] < regret["alone"]
    assert 2 * regret["alone"] < regret["pooled"]
    assert teams["together"].gap.max() == 0
    assert pooled.gap.max() > 0.5


def test_more_agents_than_fit_are_refused_before_their_sums_are_made():
    """600 agents, 6 steps, 12 features, and for each agent's row one of 600 x 5 states."""
    said = r"^agents x steps x sums \[600, 6, 12, 3000\]: 129600000 numbers, expected 50000000 at most$"
    with pytest.raises(UserError, match=said):
        team(make_heterogeneous_locks(agents=600))


def test_agents_of_one_process_share_its_table():
    assert len(team()._tables) == 2
    np.testing.assert_allclose(team().optimum, team().optimum[0])  # which position is swapped costs nothing


def test_fitting_in_pieces_and_through_a_stored_state_gives_the_same_bits():
    whole, pieces, resumed = (team(seed=6) for _ in range(3))
    whole.fit(60)
    pieces.fit(25)
    resumed.load_state_dict(pieces.state_dict())
    resumed.fit(35)
    np.testing.assert_array_equal(resumed.regret, whole.regret)
    np.testing.assert_array_equal(resumed.q, whole.q)
    assert resumed.communication == whole.communication


def test_definition_2_shifts_values_so_that_agents_learn_one_policy_together():
    processes = make_value_shift(agents=6)
    together, alone = team(processes, 5.0, beta=1.0, seed=7), team(processes, math.inf, beta=1.0, seed=7)
    for agents in (together, alone):
        agents.fit(400)
    assert together.regret.mean() < 0.7 * alone.regret.mean()
