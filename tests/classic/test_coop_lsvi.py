import logging
import math

import numpy as np
import pytest
from lsvi_reference import Reference

from marl.classic.communication import Communication, sums_size
from marl.classic.coop_lsvi import CoopLSVI, HeterogeneousCoopLSVI, default_threshold, rounds_bound
from marl.classic.instances import (
    make_chain,
    make_combination_lock,
    make_heterogeneous_locks,
    make_riverswim,
    make_simplex_mdp,
    make_soft_block_lock,
)
from marl.classic.lsvi import Bonus
from marl.classic.mdp import LinearMDP, TabularMDP
from marl.classic.planning import evaluate_policy, optimal_values, start_value
from marl.classic.ridge import LogDetTrigger
from marl.types import UserError

NEVER, ALWAYS = LogDetTrigger(math.inf), LogDetTrigger(0.0)
LOCK = make_combination_lock()
SIMPLEX = make_simplex_mdp(states=6, actions=2, dim=3, horizon=4)


def team(process=LOCK, agents=3, threshold=5.0, beta=2.0, **settings):
    return CoopLSVI(process, agents, trigger=LogDetTrigger(threshold), bonus=Bonus(beta=beta), **settings)


def reference(process, agents, threshold, beta=2.0, **settings):
    block = np.zeros(agents, int)
    return Reference([process] * agents, process.features, block, threshold, Bonus(beta=beta), **settings)


def test_one_hot_features_give_the_count_based_algorithm_number_by_number():
    fast = team(LOCK, threshold=5.0, seed=3)
    slow = reference(LOCK, 3, 5.0, seed=3, tabular=True)
    for _ in range(60):
        fast.fit(1)
        slow.episode()
        np.testing.assert_allclose(fast.q, slow.q, rtol=0, atol=1e-12)
        assert fast.communication.rounds == slow.rounds
    assert 2 < slow.rounds < 20


@pytest.mark.parametrize(("threshold", "replan"), [(3.0, 1.2), (3.0, 1.0), (0.0, 1.2), (math.inf, 1.5)])
def test_sums_without_history_give_what_the_papers_box_gives_with_it(threshold, replan):
    fast = team(SIMPLEX, threshold=threshold, replan=replan, regulariser=0.5, seed=4)
    slow = reference(SIMPLEX, 3, threshold, replan=replan, regulariser=0.5, seed=4)
    for _ in range(25):
        fast.fit(1)
        slow.episode()
        np.testing.assert_allclose(fast.q, slow.q, rtol=0, atol=1e-9)
        assert fast.communication.rounds == slow.rounds
    for m, h in np.ndindex(3, SIMPLEX.horizon):
        assert fast.statistics.count[m, h] == len(slow.known(m, h))


def test_a_bandit_pays_half_an_episode_until_the_bad_arm_was_tried():
    """H = 1, rewards 1 and 0, lambda = beta = 1. Arm 0 tried n times: n / (n + 1) + 1 / sqrt(n + 1) >= 1, clipped at 1;
    arm 1 untried: 1. A tie, which costs 1/2. Arm 1 tried once: 0 + 1 / sqrt 2 < 1, never again."""
    process = LinearMDP.one_hot(TabularMDP(np.ones((1, 2, 1)), np.array([[1.0, 0.0]])), 1)
    agent = team(process, agents=1, threshold=math.inf, beta=1.0, seed=5)
    before = []
    while agent.statistics.gram[0, 0, 1, 1] == 0:
        before.append(agent.regret[0])
        agent.fit(1)
    assert before == [0.5 * t for t in range(len(before))]
    agent.fit(100)
    assert agent.regret[0] == 0.5 * len(before)
    assert agent.statistics.gram[0, 0, 1, 1] == 1
    assert agent.gap[0] == 0


def test_regret_is_the_exact_gap_of_each_episodes_policy():
    agents = team(LOCK, seed=6)
    total = np.zeros(3)
    for _ in range(30):
        policy = agents.tied / agents.tied.sum(-1, keepdims=True)
        total += [agents.optimum[m] - start_value(LOCK, evaluate_policy(LOCK, policy[m])) for m in range(3)]
        agents.fit(1)
    np.testing.assert_allclose(agents.regret, total, rtol=1e-12)


@pytest.mark.parametrize(
    "process",
    [LOCK, make_riverswim(), make_chain(), make_soft_block_lock(), make_simplex_mdp()],
    ids=["lock", "riverswim", "chain", "softblock", "simplex"],
)
@pytest.mark.parametrize("threshold", [0.0, 5.0, math.inf])
def test_with_the_constants_of_the_theory_the_upper_value_is_never_below_the_optimum(process, threshold):
    agents = CoopLSVI(process, 4, trigger=LogDetTrigger(threshold), seed=7)
    for _ in range(4):
        assert (agents.upper >= agents.optimum - 1e-9).all()
        agents.fit(40)
    assert (agents.upper <= process.horizon + 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.0, 5.0, math.inf])
def test_optimism_holds_in_every_state_where_the_clip_does_not_make_it_true(seed, threshold):
    """On the processes above theory's beta is in the hundreds and the clip at H - h is all that is seen. Here it is
    4 sqrt(log(320 t)), some 14, and in the end half of the values or more are below the clip."""
    process = make_simplex_mdp(states=4, actions=2, dim=2, horizon=2, seed=seed)
    agents = CoopLSVI(process, 4, trigger=LogDetTrigger(threshold), seed=seed)
    exact, clip = optimal_values(process.tabular).v, np.array([2, 1, 0])[:, None]
    for _ in range(5):
        agents.fit(3000 if threshold == math.inf else 600)
        assert (agents.v >= exact - 1e-9).all()
    assert (agents.v[:, :2] < clip[:2] - 1e-9).mean() >= 0.5


def test_without_a_bonus_ridge_shrinkage_makes_the_values_pessimistic():
    agents = team(LOCK, beta=0.0)
    agents.fit(100)
    assert (agents.upper < agents.optimum).all()


def test_centralised_agents_know_every_row_once_and_all_the_same():
    agents = team(SIMPLEX, threshold=0.0)
    agents.fit(50)
    assert agents.communication.rounds == 50
    assert (agents.statistics.count == 3 * 50).all()  # adding what is common again and again would give more
    for name in ("gram", "inverse", "reward_sum", "next_sum", "log_det"):
        values = getattr(agents.statistics, name)
        np.testing.assert_array_equal(values, np.broadcast_to(values[:1], values.shape))
    np.testing.assert_allclose(agents.statistics.next_sum[0].sum(-1).sum(-1), 3 * 50)  # simplex features sum to 1


def test_isolated_agents_know_their_own_rows_and_say_nothing():
    agents = team(SIMPLEX, threshold=math.inf)
    agents.fit(50)
    assert (agents.statistics.count == 50).all()
    assert agents.communication == Communication()


def test_many_synchronisations_leave_the_sums_of_all_rows_exact():
    agents = team(make_soft_block_lock(), threshold=0.0)
    agents.fit(400)
    known = agents.statistics
    fresh = np.linalg.inv(known.gram[0] + np.eye(agents.dim))
    np.testing.assert_allclose(known.inverse[0], fresh, rtol=0, atol=1e-10)
    np.testing.assert_allclose(known.next_sum.sum((-1, -2)), known.count, rtol=1e-10)  # features of sum 1


def test_planning_waits_until_an_agent_has_learned_something():
    eager, lazy = team(threshold=math.inf, replan=1.0, seed=8), team(threshold=math.inf, replan=1.2, seed=8)
    eager.fit(300)
    lazy.fit(300)
    assert eager.plans == 301
    assert lazy.plans < 0.8 * eager.plans
    late = team(threshold=math.inf, replan=1.2, seed=8)
    plans = []
    for _ in range(5):
        late.fit(1000)
        plans.append(late.plans)
    assert plans[4] - plans[3] < 0.15 * plans[0]  # det Lambda grows by a fifth ever more rarely


def test_rounds_stay_below_lemma_1_and_do_not_grow_with_the_number_of_episodes():
    rounds = {}
    for episodes in (500, 4000):
        threshold = default_threshold(episodes, 8, LOCK.dim)
        agents = team(LOCK, 8, threshold, seed=9)
        agents.fit(episodes)
        rounds[episodes] = agents.communication.rounds
        bound = rounds_bound(episodes, threshold, LOCK.horizon, LOCK.dim, 8)
        # S = T log(MT) / (d M^2) in 2 H sqrt(d T log(MT) / S) + 4 H: 2 H d M + 4 H = 2 * 6 * 10 * 8 + 24
        assert bound == pytest.approx(984)
        assert rounds[episodes] <= bound
    assert rounds[4000] <= 1.2 * rounds[500]
    fixed = [team(LOCK, 8, 10.0, seed=9) for _ in range(2)]
    fixed[0].fit(500)
    fixed[1].fit(4000)
    assert fixed[1].communication.rounds > 1.8 * fixed[0].communication.rounds  # S must grow with T for that
    assert rounds_bound(100, 0.0, 6, 10, 8) == math.inf


def test_cooperation_comes_near_to_the_centralised_regret_and_far_below_the_isolated_one():
    regret = {}
    for threshold in (0.0, 5.0, math.inf):
        agents = team(make_riverswim(), 8, threshold, beta=4.0, seed=10)
        agents.fit(1000)
        regret[threshold] = agents.regret.mean()
    assert regret[5.0] < 1.3 * regret[0.0]
    assert 3 * regret[5.0] < regret[math.inf]


def test_regret_that_stays_linear_is_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING, "marl"):
        team(LOCK, 8, 100.0, beta=2.0).fit(2000)
        assert not caplog.records
        starved = team(make_chain(), 8, 5.0, beta=0.5)
        starved.fit(1000)
        starved.fit(2000)
    [record] = caplog.records
    assert "after 1024 episodes regret still grows linearly" in record.getMessage()
    assert "beta = 0.5" in record.getMessage()


def test_a_beta_that_is_too_large_is_not_to_be_made_larger(caplog):
    with caplog.at_level(logging.WARNING, "marl"):
        team(LOCK, 2, 5.0, beta=300.0).fit(1024)
    [record] = caplog.records
    assert "beta = 300" in record.getMessage()
    assert "larger" not in record.getMessage()


def test_fitting_in_pieces_and_through_a_stored_state_gives_the_same_bits():
    whole, pieces, resumed = (team(LOCK, seed=11) for _ in range(3))
    whole.fit(120)
    pieces.fit(50)
    state = pieces.state_dict()
    pieces.fit(70)  # what was stored is a copy
    resumed.fit(3)
    resumed.load_state_dict(state)
    resumed.fit(70)
    single = team(LOCK, seed=11)
    for _ in range(120):
        single.fit(1)
    for other in (pieces, resumed, single):
        np.testing.assert_array_equal(other.regret, whole.regret)
        np.testing.assert_array_equal(other.q, whole.q)
        np.testing.assert_array_equal(other.statistics.inverse, whole.statistics.inverse)
        assert other.communication == whole.communication
        assert (other.episodes, other.plans) == (whole.episodes, whole.plans)


def test_another_seed_is_another_run():
    first, second = team(seed=1), team(seed=2)
    first.fit(30)
    second.fit(30)
    assert (first.regret != second.regret).any()


def test_small_heterogeneity_is_several_processes_with_the_same_features():
    other = make_combination_lock(slip=0.12)
    agents = CoopLSVI([LOCK, LOCK, other], trigger=ALWAYS, bonus=Bonus(heterogeneity=0.02))
    agents.fit(10)
    assert agents.agents == 3
    assert agents.optimum[0] == agents.optimum[1] > agents.optimum[2]


def test_beta_is_that_of_the_proofs_and_grows_by_what_the_processes_differ():
    # c d H sqrt(log(2 d M H t / p)) = .5 * 2 * 3 * sqrt(log(2 * 2 * 1 * 3 * 5 / .1)) = 3 sqrt(log 600)
    assert Bonus(scale=0.5).at(5, dim=2, horizon=3, agents=1) == pytest.approx(3 * math.sqrt(math.log(600)))
    more = Bonus(scale=0.5, heterogeneity=0.1).at(5, 2, 3, 1) - Bonus(scale=0.5).at(5, 2, 3, 1)
    assert more == pytest.approx(0.1 * math.sqrt(2 * 1 * 5))  # xi sqrt(d M t)
    assert Bonus(beta=2.5).at(10**6, 100, 100, 100) == 2.5


def test_a_beta_that_is_given_is_not_widened_and_heterogeneity_beside_it_is_refused():
    with pytest.raises(UserError, match="heterogeneity: it widens theory's beta alone, expected 0 with beta = 2"):
        Bonus(beta=2.0, heterogeneity=0.02)


def test_the_account_of_one_round_by_hand():
    # d = 2, S = 3: 3 of the symmetric Lambda, 2 of b, 6 of N, the count: 12 numbers a step
    assert sums_size(2, 3) == 12
    account = Communication()
    account.record(agents=4, transitions=80, up=5 * 12, down=5 * 12)
    # 20 transitions of each are 80 numbers up, 80 with the agent's name 400 down: the sums' 60 are shorter
    assert (account.rounds, account.floats_up, account.floats_down) == (1, 240, 240)
    assert (account.floats, account.bytes) == (480, 3840)
    assert account.transition_floats == 4 * 80 + 4 * 400
    account.record(agents=4, transitions=8, up=5 * 12, down=5 * 12)
    # 2 transitions of each: 8 numbers up, 40 down, shorter than the sums
    assert (account.rounds, account.floats_up, account.floats_down) == (2, 240 + 4 * 8, 240 + 4 * 40)
    other = Communication()
    other.load_state_dict(account.state_dict())
    assert other == account


def test_the_account_of_a_run_by_hand():
    """d = 10, S = 5, H = 6, M = 3: 55 + 10 + 50 + 1 = 116 numbers a step, 696 a message of sums.

    A round after every episode is about 3 x 6 = 18 transitions: 6 x 4 numbers up from each, 18 x 5 = 90 down to each.
    """
    agents = team(LOCK, agents=3, threshold=0.0)
    agents.fit(2)
    said = agents.communication
    assert (said.rounds, said.floats_up, said.floats_down) == (2, 2 * 3 * 24, 2 * 3 * 90)
    assert said.bytes == 8 * 2 * 3 * 114
    assert said.transition_floats == said.floats


def test_a_round_about_many_episodes_sends_sums_and_different_agents_send_their_own_states_only():
    """One round after 100 episodes of 2 agents in locks that differ: d = 12, S = 5, H = 6.

    Up 78 + 12 + 12 x 5 + 1 = 151 numbers a step, 906, where 600 transitions would be 2400; down all agents' states,
    78 + 12 + 12 x 10 + 1 = 211, 1266, where 1200 transitions would be 6000.
    """
    agents = HeterogeneousCoopLSVI(
        make_heterogeneous_locks(agents=2), trigger=LogDetTrigger(math.inf), bonus=Bonus(beta=2.0)
    )
    agents.fit(100)
    agents._synchronise()
    assert (agents.dim, agents.states, agents.horizon) == (12, 5, 6)
    said = agents.communication
    assert (said.rounds, said.floats_up, said.floats_down) == (1, 2 * 906, 2 * 1266)
    assert said.transition_floats == 2 * (2400 + 6000)


def test_more_agents_than_memory_holds_are_refused_before_anything_is_made():
    with pytest.raises(UserError, match="agents x steps x sums"):
        CoopLSVI(make_riverswim(), 10**9, trigger=LogDetTrigger(1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: team(agents=0), "agents: expected 1, one for each process, got 0"),
        (lambda: team(agents=2.5), "agents: expected a whole number, got 2.5"),
        (lambda: CoopLSVI([], trigger=NEVER), "processes: expected one or more, got none"),
        (lambda: default_threshold(0, 8, 10), "episodes: expected 1 or more, got 0"),
        (lambda: rounds_bound(10, 1.0, 6, 10, 0), "agents: expected 1 or more, got 0"),
        (lambda: CoopLSVI([LOCK, LOCK], 3, trigger=NEVER), "agents: expected 2, one for each process, got 3"),
        (lambda: CoopLSVI([LOCK, SIMPLEX], trigger=NEVER), r"process 1: features \[6, 2, 3\] and horizon 4"),
        (lambda: CoopLSVI([SIMPLEX, relabelled()], trigger=NEVER), r"use LinearMDP.one_hot\(process.tabular\)"),
        (lambda: team(replan=0.9), "replan: expected a factor of 1 or more, got 0.9"),
        (lambda: team(regulariser=0.0), "regulariser: expected a number above 0"),
        (lambda: team(beta=-1.0), "beta: expected a number of 0 or more, got -1.0"),
        (lambda: Bonus(failure=1.0), "failure: expected a probability between 0 and 1"),
        (lambda: team().fit(-1), "n_episodes: expected 0 or more, got -1"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def relabelled():
    return LinearMDP(SIMPLEX.features[..., ::-1], SIMPLEX.theta[:, ::-1], SIMPLEX.mu[:, ::-1], SIMPLEX.start)
