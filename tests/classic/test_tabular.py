import json
import logging
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.classic.adjacency import Adjacency
from marl.classic.digital import Digital
from marl.classic.mdp import TabularMDP
from marl.classic.networks import Network, failing_links, make_network
from marl.classic.planning import discounted_values
from marl.classic.tabular import IndependentQ, PolicyReciprocityQ, QDLearning, adjacency_limit
from marl.types import UserError

N, S, A, GAMMA = 4, 6, 3, 0.7
FAST = {"a": 0.6, "b": 0.4, "tau1": 0.8, "tau2": 0.1}
"""Step sizes whose expected updates arrive within some thousand sweeps at a small discount."""


def steps(count, seed=0, agents=N, states=S, actions=A):
    """Random transitions ``[T, N]``; every agent somewhere else, some of them absent, some ending."""
    rng = np.random.default_rng(seed)
    shape = (count, agents)
    state = rng.integers(0, states, shape)
    state[rng.random(shape) < 0.1] = -1
    action, following = rng.integers(0, actions, shape), rng.integers(0, states, shape)
    return state, action, rng.normal(size=shape), following, rng.random(shape) < 0.1


def plain(learner, network, adjacency, batch, kappa, decay, rule="pr", in_place=False):
    """Equations 5, 6 and 8 as loops; ``in_place`` is the usual bug: agents that read what others wrote this step."""
    q, visits = learner.q.copy(), learner.visits.copy()
    p = learner.rule
    for t, (state, action, reward, following, ended) in enumerate(zip(*batch, strict=True)):
        old = q if in_place else q.copy()
        for i in range(len(q)):
            s, u = state[i], action[i]
            if s < 0:
                continue
            k = visits[i, s, u]
            visits[i, s, u] += 1
            target = reward[i] + (0 if ended[i] else p.gamma * old[i, following[i]].max())
            new = old[i, s, u] + p.a / (k + 1) ** p.tau1 * (target - old[i, s, u])
            others = np.flatnonzero(network.graphs[t % network.period, i])
            beta = p.b / (k + 1) ** p.tau2
            if rule == "qd":
                new -= beta * sum(old[i, s, u] - old[other, s, u] for other in others)
            else:
                kappa_k = 1 - (1 - kappa) * (k + 1) ** -decay
                heard = [i, *others]
                same = np.mean([old[n, s, u] for n in heard])
                near = np.mean([adjacency.matrix.toarray()[s] @ old[n, :, u] for n in heard])
                new += beta * (kappa_k * same + (1 - kappa_k) * near - old[i, s, u])
            q[i, s, u] = new
    return q


def reciprocity(network=None, adjacency=None, **options):
    network, adjacency = network or make_network("complete", N), adjacency or Adjacency.ring(S)
    return PolicyReciprocityQ(network.agents, adjacency.states, A, GAMMA, network, adjacency, **options)


def test_one_step_of_two_agents_by_hand():
    learner = PolicyReciprocityQ(2, 2, 1, 0.5, make_network("complete", 2), Adjacency.ring(2), a=0.5, b=0.25)
    learner.q[:, :, 0] = [[4, 0], [8, 2]]
    zero, one = np.zeros(2, np.int64), np.ones(2, np.int64)
    learner.update(zero, zero, np.array([1.0, 3.0]), one, np.zeros(2, bool))
    # both read: same states (4 + 8) / 2 = 6, adjacent states (0 + 2) / 2 = 1, so Q* = .5 x 6 + .5 x 1 = 3.5
    # agent 0: 4 + .5 (1 + .5 x 0 - 4) + .25 (3.5 - 4) = 4 - 1.5 - .125
    # agent 1: 8 + .5 (3 + .5 x 2 - 8) + .25 (3.5 - 8) = 8 - 2 - 1.125
    assert learner.q[:, :, 0].tolist() == [[2.375, 0], [4.875, 2]]
    # next time k = 1: alpha = .5 / 2^.65, beta = .25 / 2^.35, 1 - kappa = .5 / 2^.5
    same, near, spread = (2.375 + 4.875) / 2, 1, 0.5 / 2**0.5
    pull = 0.25 / 2**0.35 * ((1 - spread) * same + spread * near - 2.375)
    learner.update(zero, zero, np.array([1.0, 3.0]), one, np.ones(2, bool))
    assert learner.q[0, 0, 0] == pytest.approx(2.375 + 0.5 / 2**0.65 * (1 - 2.375) + pull)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_compiled_loop_is_the_plain_loop_on_a_changing_network(decay):
    network = failing_links(make_network("ring", N), 0.4, period=7)
    adjacency = Adjacency.observed(np.arange(S * 2).reshape(S, 2) // 3, [True, True], 1)
    learner = reciprocity(network, adjacency, kappa_same=0.3, anneal_adjacency=decay)
    batch = steps(300)
    expected = plain(learner, network, adjacency, batch, 0.3, decay or 0.0)
    learner.update_many(*batch)
    assert learner.q == pytest.approx(expected, abs=1e-12)


def test_agents_that_read_what_others_wrote_in_the_same_step_would_be_seen():
    learner = reciprocity()
    batch = steps(20)
    sequential = plain(learner, make_network("complete", N), Adjacency.ring(S), batch, 0.5, 0.5, in_place=True)
    learner.update_many(*batch)
    assert np.abs(learner.q - sequential).max() > 1e-3


def test_the_order_of_the_agents_does_not_matter():
    batch, order = steps(200), np.array([2, 0, 3, 1])
    one, other = reciprocity(), reciprocity()
    one.update_many(*batch)
    other.update_many(*(each[:, order] for each in batch))
    assert other.q == pytest.approx(one.q[order], abs=1e-12)


def test_many_steps_at_once_are_bit_for_bit_single_steps():
    batch, one, other = steps(100), reciprocity(), reciprocity()
    one.update_many(*batch)
    for step in zip(*batch, strict=True):
        other.update(*step)
    assert (one.q == other.q).all() and (one.visits == other.visits).all() and one.steps == other.steps == 100


def test_absent_agents_keep_their_tables_and_are_still_heard():
    learner = reciprocity(kappa_same=1.0)
    learner.q[1] = 5
    state = np.array([0, -1, -1, -1])
    learner.update(state, np.zeros(N, int), np.zeros(N), np.zeros(N, int), np.ones(N, bool))
    assert learner.q[0, 0, 0] == pytest.approx(0.3 * 5 / 4)  # beta times the mean of (0, 5, 0, 0)
    assert (learner.q[1] == 5).all() and learner.visits.sum() == 1


def test_qd_learning_is_its_plain_loop_on_a_ring():
    network, batch = make_network("ring", N), steps(300)
    learner = QDLearning(N, S, A, GAMMA, network, a=0.2, b=0.25)
    expected = plain(learner, network, Adjacency.alone(S), batch, 1.0, 0.0, rule="qd")
    learner.update_many(*batch)
    assert learner.q == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "heard"), [("complete", N), ("ring", 3)])
def test_reciprocity_on_the_same_states_is_qd_learning_with_beta_over_the_neighbourhood_step_by_step(kind, heard):
    network = make_network(kind, N)
    pr, qd = reciprocity(network, kappa_same=1.0, b=0.4), QDLearning(N, S, A, GAMMA, network, b=0.4 / heard)
    for step in zip(*steps(300), strict=True):
        pr.update(*step)
        qd.update(*step)
        assert pr.q == pytest.approx(qd.q, abs=1e-12)
    assert np.abs(pr.q).max() > 0.1


def test_reciprocity_is_not_qd_learning_where_agents_have_different_numbers_of_neighbours():
    network, batch = make_network("star", N), steps(300)
    pr, qd = reciprocity(network, kappa_same=1.0), QDLearning(N, S, A, GAMMA, network)
    pr.update_many(*batch)
    qd.update_many(*batch)
    assert np.abs(pr.q - qd.q).max() > 1e-3


def test_independent_learners_follow_equation_1():
    learner, batch = IndependentQ(N, S, A, GAMMA), steps(200)
    q, visits = np.zeros((N, S, A)), np.zeros((N, S, A))
    for state, action, reward, following, ended in zip(*batch, strict=True):
        for i in range(N):
            if (s := state[i]) >= 0:
                visits[i, s, action[i]] += 1
                target = reward[i] + (not ended[i]) * GAMMA * q[i, following[i]].max()
                q[i, s, action[i]] += 0.5 * visits[i, s, action[i]] ** -0.65 * (target - q[i, s, action[i]])
    learner.update_many(*batch)
    assert learner.q == pytest.approx(q, abs=1e-12)
    assert learner.greedy.shape == (N, S) and learner.average == pytest.approx(q.mean(0))


def test_the_expected_sweep_is_the_mean_of_what_updates_do():
    rng = np.random.default_rng(1)
    network = failing_links(make_network("ring", N), 0.5, period=5, seed=2)
    successor, reward, start = rng.integers(0, S, (S, A)), rng.normal(size=(N, S, A)), rng.normal(size=(N, S, A))
    transition = np.eye(S)[successor]  # without chance, so that the mean is what happens
    for make in (lambda: reciprocity(network), lambda: QDLearning(N, S, A, GAMMA, network)):
        swept = make()
        swept.q[:], swept.visits[:], swept.steps = start, 3, 3
        swept.expected_sweep(transition, reward)
        for s in range(S):
            for u in range(A):
                single = make()
                single.q[:], single.visits[:], single.steps = start, 3, 3
                all_in = [np.full(N, each) for each in (s, u)]
                single.update(*all_in, reward[:, s, u], np.full(N, successor[s, u]), np.zeros(N, bool))
                assert single.q[:, s, u] == pytest.approx(swept.q[:, s, u], abs=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0.01, 0.99))
def test_tables_stay_within_the_bounds_of_the_rewards_as_theorem_1_says(seed, kappa, a):
    batch = steps(100, seed)
    rewards = np.random.default_rng(seed).random(batch[2].shape)
    learner = reciprocity(a=a, b=1 - a, kappa_same=kappa)
    learner.update_many(*batch[:2], rewards, *batch[3:])
    assert learner.q.min() >= 0 and learner.q.max() <= 1 / (1 - GAMMA) + 1e-12


def sweep(learner, world, count):
    for _ in range(count):
        learner.expected_sweep(world.transition, world.reward)
    gap = np.abs(learner.q - learner.average).max()
    return gap, np.abs(learner.average - world.optimum).max()


def on(world, network="ring", **options):
    sizes = (world.agents, world.states, world.actions)
    adjacency = options.pop("adjacency", None) or Adjacency.ring(world.states)
    return PolicyReciprocityQ(*sizes, world.gamma, make_network(network, world.agents), adjacency, **options)


SMALL = Digital(agents=4, states=6, gamma=0.3, seed=5)


def test_same_states_only_reach_consensus_and_the_optimum_in_expected_updates():
    gap, error = sweep(on(SMALL, kappa_same=1.0, **FAST), SMALL, 20_000)
    # the gap decays like alpha / beta = 1.5 k^-.7 = .0015 at 20 000, times rewards' spread of up to 4 over 1 - 1/3
    assert gap < 0.01 and error < 0.001


def test_a_constant_kappa_below_1_reaches_consensus_but_not_the_optimum():
    learner = on(SMALL, kappa_same=0.5, anneal_adjacency=None, **FAST)
    gap, error = sweep(learner, SMALL, 20_000)
    assert gap < 0.01
    assert error == pytest.approx(0.612, abs=0.005)
    _, later = sweep(learner, SMALL, 10_000)
    assert later == pytest.approx(error, abs=0.01)  # and stays


def test_annealing_reaches_both():
    # 1 - kappa_k = .5 (k + 1)^-.95: the adjacent states' pull is .2 k^-1.05 beside alpha = .6 k^-.8
    gap, error = sweep(on(SMALL, kappa_same=0.5, anneal_adjacency=0.95, **FAST), SMALL, 20_000)
    assert gap < 0.01 and error < 0.15
    _, later = sweep(on(SMALL, kappa_same=0.5, anneal_adjacency=1.5, **FAST), SMALL, 20_000)
    assert later < 0.002


def test_adjacent_states_with_equal_values_let_a_constant_kappa_reach_both():
    # each state has a twin that is left and paid in the same way, and adjacent are the twins: Q# = Q* there
    half = Digital(agents=4, states=3, gamma=0.3, seed=6)
    world = Digital(agents=4, states=6, gamma=0.3, seed=6)
    twin = np.array([0, 1, 2, 0, 1, 2])
    world.transition = np.repeat(half.transition[twin], 2, axis=-1)[..., [0, 2, 4, 1, 3, 5]] / 2
    world.reward = half.reward[:, twin]
    adjacency = Adjacency.from_groups(twin)
    assert adjacency.average(world.optimum) == pytest.approx(world.optimum)
    learner = on(world, adjacency=adjacency, kappa_same=0.5, anneal_adjacency=None, **FAST)
    learner.q[:] = np.random.default_rng(0).normal(size=learner.q.shape)  # twins differ at first
    gap, error = sweep(learner, world, 20_000)
    assert gap < 0.01 and error < 0.001


def test_the_limit_of_a_constant_kappa_over_one_class_is_the_formula_in_the_notes():
    adjacency = Adjacency.line(6)
    limit = adjacency_limit(SMALL.transition, SMALL.mean.reward, SMALL.gamma, adjacency)
    # c_a = sum_s w_s r(s, a) + gamma max c, with w = (1, 2, 2, 2, 2, 1) / 10; so max c = max_a (w @ r) / (1 - gamma)
    paid = np.array([1, 2, 2, 2, 2, 1]) / 10 @ SMALL.mean.reward
    assert limit == pytest.approx(np.tile(paid + 0.3 * paid.max() / 0.7, (6, 1)))
    learner = on(SMALL, adjacency=adjacency, kappa_same=0.0, anneal_adjacency=None, **FAST)
    sweep(learner, SMALL, 20_000)
    assert learner.average == pytest.approx(limit, abs=0.03)
    assert np.abs(limit - SMALL.optimum).max() > 0.6


def test_the_limit_over_several_classes_is_the_optimum_of_the_process_of_classes():
    adjacency = Adjacency.from_groups([0, 0, 1, 1, 2, 2])
    learner = on(SMALL, adjacency=adjacency, kappa_same=0.0, anneal_adjacency=None, **FAST)
    sweep(learner, SMALL, 20_000)
    limit = adjacency_limit(SMALL.transition, SMALL.mean.reward, SMALL.gamma, adjacency)
    assert (limit[::2] == limit[1::2]).all() and np.ptp(limit[:, 0]) > 0.1
    assert learner.average == pytest.approx(limit, abs=0.03)


def test_the_limit_where_every_state_is_alone_is_the_optimum():
    alone = Adjacency.alone(6)
    limit = adjacency_limit(SMALL.transition, SMALL.mean.reward, SMALL.gamma, alone)
    mean = TabularMDP(SMALL.transition, SMALL.mean.reward)
    assert limit == pytest.approx(discounted_values(mean, SMALL.gamma).q, abs=1e-8)


def test_states_that_are_seldom_visited_weigh_more_in_the_limit():
    # three of four states get a tenth of the visits; w_s is then f_s^(tau2 - tau1) = f_s^-.7, not 1 / 4
    paid, share = np.array([4.0, 0, 0, 1]), np.array([0.7, 0.1, 0.1, 0.1])
    network, options = make_network("none", 1), {"kappa_same": 0.0, "anneal_adjacency": None, **FAST}
    learner = PolicyReciprocityQ(1, 4, 1, 0.0, network, Adjacency.ring(4), **options)
    state = np.random.default_rng(0).choice(4, (1_000_000, 1), p=share)
    learner.update_many(state, 0 * state, paid[state], state, np.ones_like(state, bool))
    weights = share**-0.7 / (share**-0.7).sum()
    assert learner.average.ravel() == pytest.approx([weights @ paid] * 4, abs=0.005)
    assert weights @ paid < 0.63 < paid.mean() == 1.25


def test_noisy_updates_on_one_walk_tell_the_same_story():
    world = Digital(agents=6, states=8, gamma=0.5, seed=2)
    learners = [
        on(world, "complete", kappa_same=1.0),
        on(world, "complete", kappa_same=0.5, anneal_adjacency=None),
        on(world, "complete", kappa_same=0.5, anneal_adjacency=0.9),
    ]
    rng, state = np.random.default_rng(3), 0
    for _ in range(40):
        walk = world.walk(rng, state, 10_000)
        state = int(walk.next_state[-1, 0])
        for learner in learners:
            learner.update_many(*walk)
    gaps = [np.abs(each.q - each.average).max() for each in learners]
    errors = [np.abs(each.average - world.optimum).max() for each in learners]
    assert max(gaps) < 0.15  # alpha / beta = 25 000 visits ^ -.3 = .048, times rewards' deviations of up to 3
    assert errors[0] < 0.05 and errors[1] > 0.7 and errors[2] < 0.1


def test_a_saved_learner_goes_on_bit_for_bit_through_json():
    network, batch = failing_links(make_network("ring", N), 0.4, period=7), steps(100)
    first, second = reciprocity(network), reciprocity(network)
    first.update_many(*(each[:45] for each in batch))
    saved = first.state_dict()
    first.update_many(*(each[45:] for each in batch))
    stored = {"q": saved["q"], "visits": saved["visits"], **json.loads(json.dumps({"steps": saved["steps"]}))}
    second.load_state_dict(stored)
    second.update_many(*(each[45:] for each in batch))
    assert (first.q == second.q).all() and (first.visits == second.visits).all() and first.steps == second.steps
    with pytest.raises(UserError, match="q: expected"):
        IndependentQ(1, 1, 1, 0.5).load_state_dict(saved)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: reciprocity(a=0.7, b=0.4), r"a \+ b: expected 1 at most.* 0.7 \+ 0.4 = 1.1"),
        (lambda: reciprocity(kappa_same=1.1), "kappa_same: expected a number from 0 to 1"),
        (lambda: reciprocity(anneal_adjacency=0.2), "more than tau1 - tau2 = 0.3"),
        (lambda: reciprocity(tau1=0.5, tau2=0.2), "tau1: expected more than 0.5"),
        (lambda: reciprocity(tau2=0.7), "tau2: expected more than 0 and less than tau1"),
        (lambda: QDLearning(N, S, A, GAMMA, make_network("complete", N), b=0.3), r"a \+ 3 b: .* b up to 0.2333"),
        (lambda: QDLearning(N, S, A, GAMMA, make_network("none", N), a=1.5), "a and b: expected 0 < a <= 1"),
        (lambda: reciprocity().expected_sweep(np.ones((S, S)), np.ones((N, S, A))), r"transition \[6, 6\] and reward"),
        (lambda: reciprocity().expected_sweep(np.ones((S, A, S)), np.ones((S, A))), r"reward \[6, 3\]: expected"),
        (lambda: adjacency_limit(np.full((S, A, S), 1 / S), np.ones((S, A)), 0.5, Adjacency.ring(3)), "with S = 3"),
        (lambda: adjacency_limit(np.full((S, A, S), 1 / S), np.ones((S, 1)), 0.5, Adjacency.ring(S)), "reward .6, 1."),
        (lambda: QDLearning(N, S, A, GAMMA, make_network("complete", 3)), "network: expected one of 4 agents"),
        (lambda: PolicyReciprocityQ(N, 5, A, 0.5, make_network("ring", N), Adjacency.ring(S)), "one of 5 states"),
        (lambda: IndependentQ(N, S, A, 1.0), "gamma: expected a number from 0 to below 1"),
        (lambda: IndependentQ(N, 0, A, 0.5), "states: expected 1 or more, got 0"),
        (lambda: IndependentQ(N, S, A, 0.5, a=0.0), "a and b"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("which", "value", "words"),
    [
        (0, np.full((5, N), S), "state: expected 0 to 5, got 6 to 6"),
        (1, np.full((5, N), -1), "action: expected 0 to 2"),
        (3, np.full((5, N), S), "next_state: expected 0 to 5"),
        (2, np.full((5, N), np.nan), "reward: expected finite numbers, got nan"),
        (2, np.zeros((5, N - 1)), "reward: expected 4 entries a step"),
        (4, np.zeros((4, N), bool), "terminated: expected 4 entries"),
    ],
)
def test_transitions_that_do_not_fit_change_nothing(which, value, words):
    batch = [
        np.zeros((5, N), int),
        np.zeros((5, N), int),
        np.ones((5, N)),
        np.zeros((5, N), int),
        np.zeros((5, N), bool),
    ]
    batch[which] = value
    learner = reciprocity()
    with pytest.raises(UserError, match=words):
        learner.update_many(*batch)
    assert not learner.q.any() and learner.steps == 0


def test_a_constant_kappa_and_a_disconnected_network_warn_in_one_line(caplog):
    with caplog.at_level(logging.WARNING, "marl"):
        reciprocity()
        reciprocity(kappa_same=1.0, anneal_adjacency=None)
        assert not caplog.records
        reciprocity(anneal_adjacency=None)
        QDLearning(2, S, A, GAMMA, Network(np.zeros((2, 2))))
    first, second = (record.message for record in caplog.records)
    assert "kappa_same = 0.5 held constant" in first and "{0} | {1}" in second
    assert "\n" not in first + second


def test_twenty_agents_make_a_million_agent_updates_a_second():
    world = Digital()
    learner = on(world, "complete")
    walk = world.walk(np.random.default_rng(0), 0, 10_000)
    learner.update_many(*(each[:10] for each in walk))  # compile
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        learner.update_many(*walk)
        seconds.append(time.perf_counter() - start)
    assert 20 * 10_000 / min(seconds) > 1e6
