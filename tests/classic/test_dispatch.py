from itertools import pairwise

import numpy as np
import pytest

from marl.classic.subsample.dispatch import Queues, rule_gap, rule_values, shortest_of, slot_chances
from marl.classic.subsample.queueing import QueueModel, QueueTable
from marl.types import UserError


def naive(model, queues, rule_of, k, steps):
    """One copy, played with plain Python from the queues' state and generators; the discounted return."""
    state = queues.state_dict()
    moves, subsets = np.random.default_rng(), np.random.default_rng()
    moves.bit_generator.state, subsets.bit_generator.state = state["moves"], state["subsets"]
    lengths, marked, order = list(map(int, state["lengths"][0])), int(state["marked"][0]), list(state["order"][0])
    total = 0.0
    for t in range(steps + 1):
        for i in range(k):
            j = i + int(subsets.random() * (model.n - i))
            order[i], order[j] = order[j], order[i]
        chosen = rule_of(lengths, marked, order[:k])
        came = moves.random() < model.arrival
        reward = -sum(lengths)
        for q in range(model.n):
            grown = lengths[q] + (came and q == marked)
            served = moves.random() < model.p
            reward -= 10 * (grown - served > model.c)
            lengths[q] = min(model.c, max(0, grown - served))
        total += model.gamma**t * reward / model.n
        marked = int(chosen)
    return total, lengths


def naive_shortest(lengths, marked, seen):
    return min(seen, key=lambda q: (lengths[q] + (q == marked), q == marked))


def naive_table(table):
    rule = table.rule()

    def choose(lengths, marked, seen):
        others = sorted(lengths[q] for q in seen if q != marked)
        if marked in seen:
            slot = rule.here[int(table.others.rank(np.array(others))), lengths[marked]]
            if slot == 0:
                return marked
            wanted = others[slot - 1]
        else:
            wanted = others[rule.elsewhere[int(table.index.rank(np.array(others)))]]
        return next(q for q in seen if q != marked and lengths[q] == wanted)

    return choose


@pytest.mark.parametrize("learnt", [False, True])
def test_playing_equals_a_plain_loop(learnt):
    model = QueueModel(6, 0.2, 4, arrival=0.9)
    table = QueueTable(model, 3).solve()
    rule, plain = (table.rule(), naive_table(table)) if learnt else (shortest_of(3), naive_shortest)
    queues = Queues(model, 1, 5)
    expected, lengths = naive(model, queues, plain, 3, 200)
    played = queues.play(rule, 200)
    assert played.discounted[0] == pytest.approx(expected)
    assert queues.lengths[0].tolist() == lengths


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_exact_value_of_a_rule_is_what_is_earned_on_average(k):
    model = QueueModel(3, 0.4, 4)
    whole = QueueTable(model, 3).solve()
    rule = QueueTable(model, k).solve().rule()
    exact = whole.uniform_value(rule_values(whole, rule))
    earned = Queues(model, 40_000, k).play(rule, 150).discounted
    assert abs(earned.mean() - exact) < 4 * earned.std() / 200  # 40 000 = 200 x 200; gamma^150 leaves 1e-6


@pytest.mark.parametrize("model", [QueueModel(4, 0.8, 6), QueueModel.with_load(4, 0.9, 6)])
def test_the_gap_to_the_exact_optimum_falls_in_k_to_nothing(model):
    whole = QueueTable(model, 4).solve(1e-7)
    gaps = [rule_gap(whole, QueueTable(model, k).solve(1e-7).rule()) for k in (1, 2, 3, 4)]
    for first, second in pairwise(gaps):
        assert second.worst < first.worst / 1.5
        assert second.mean < first.mean / 1.5
    assert abs(gaps[-1].worst) < 1e-4
    assert min(gap.mean for gap in gaps) > -1e-4


def test_without_thinning_two_of_four_queues_are_taken_for_overloaded_and_that_costs():
    model = QueueModel.with_load(4, 0.9, 6)
    whole = QueueTable(model, 4).solve(1e-7)
    thin, literal = (rule_gap(whole, QueueTable(model, 2, thin=t).solve(1e-7).rule()) for t in (True, False))
    assert literal.mean > thin.mean * 1.02


@pytest.mark.parametrize("model", [QueueModel(4, 0.8, 6), QueueModel.with_load(4, 0.9, 6)])
def test_the_learnt_rules_are_the_shortest_of_k_in_what_they_earn(model):
    whole = QueueTable(model, 4).solve(1e-7)
    for k in (1, 2, 3, 4):
        learnt = rule_values(whole, QueueTable(model, k).solve(1e-7).rule())
        np.testing.assert_allclose(learnt, rule_values(whole, shortest_of(k)), atol=1e-4)


def test_where_full_queues_swallow_jobs_free_the_learnt_rule_is_not_the_shortest_of_k():
    model = QueueModel(4, 0.8, 6, overflow="paper")
    whole = QueueTable(model, 4).solve(1e-7)
    lost = whole.values - rule_values(whole, shortest_of(4))
    assert lost.max() > 0.4


def test_the_chances_of_slots_by_hand():
    model = QueueModel(3, 0.5, 2)
    whole = QueueTable(model, 3)
    # marked 0, others 1 and 2. Of the pairs {m,1}, {m,2}, {1,2}: the job under way makes m a 1, and a tie goes to the 1
    place = int(whole.others.rank(np.array([1, 2])))
    np.testing.assert_allclose(slot_chances(whole, shortest_of(2))[:, place, 0], [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(slot_chances(whole, shortest_of(1))[:, place, 0], [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(slot_chances(whole, shortest_of(3))[:, place, 0], [0, 1, 0])


def test_under_heavy_load_rules_rank_as_theory_has_it():
    model = QueueModel.with_load(50, 0.9)
    length = {}
    for k in (1, 2, 50):
        queues = Queues(model, 2, 0, empty=True)
        queues.play(shortest_of(k), 20_000)
        length[k] = queues.play(shortest_of(k), 20_000).length.mean()
    # many queues, random: load / (1 - load) = 9; two choices: sum of load^(2^i - 1) = .9 + .729 + .478 + .206 + .04
    assert 6 < length[1] < 10
    assert length[2] == pytest.approx(2.35, rel=0.12)
    assert 0.8 < length[50] < 1.1
    learnt = Queues(model, 2, 0, empty=True)
    rule = QueueTable(model, 3).solve(1e-4).rule()
    learnt.play(rule, 20_000)
    assert length[50] < learnt.play(rule, 20_000).length.mean() < length[2]


def test_rules_have_equal_luck():
    model = QueueModel(10, 0.3, 5)
    one, table = Queues(model, 7, 3), Queues(model, 7, 3)
    first, second = one.play(shortest_of(1), 50), table.play(QueueTable(model, 1).solve().rule(), 50)
    assert (first.discounted == second.discounted).all()
    many = Queues(model, 7, 3)
    many.play(shortest_of(10), 50)
    assert many.state_dict()["moves"] == one.state_dict()["moves"]


def test_saved_queues_go_on_bit_for_bit_and_seeds_differ():
    model = QueueModel(10, 0.3, 5)
    queues, other = Queues(model, 3, 1), Queues(model, 3, 99)
    assert (queues.lengths != other.lengths).any()
    queues.play(shortest_of(2), 20)
    other.load_state_dict(queues.state_dict())
    first, second = queues.play(shortest_of(3), 30), other.play(shortest_of(3), 30)
    assert (first.discounted == second.discounted).all() and (queues.lengths == other.lengths).all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda m: Queues(m).play(shortest_of(4), 1),
            "k = 4 of n = 3 local agents: expected 1 <= k <= n; the nearest is 3",
        ),
        (lambda m: shortest_of(0), "the shortest of 0 queues: expected 1 or more"),
        (lambda m: Queues(m, 0), "0 runs: expected 1 or more"),
        (lambda m: slot_chances(QueueTable(m, 2), shortest_of(1)), "a table of k = 2 queues: expected all n = 3"),
        (
            lambda m: Queues(m).play(QueueTable(QueueModel(3, c=5), 2).rule(), 1),
            "a rule for lengths up to 5: expected c = 2",
        ),
    ],
)
def test_bad_input_is_one_clear_line(act, message):
    with pytest.raises(UserError) as error:
        act(QueueModel(3, 0.5, 2))
    assert str(error.value) == message
