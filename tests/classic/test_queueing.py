import itertools
import logging

import numpy as np
import pytest

from marl.classic.mdp import TabularMDP
from marl.classic.planning import discounted_values
from marl.classic.subsample.multisets import MultisetIndex
from marl.classic.subsample.queueing import QueueModel, QueueTable, surrogate_states
from marl.types import UserError


def joint_chain(model):
    """All ordered states (s_g, s_1 .. s_n) with the model's equations written out, one queue after the other."""
    states = list(itertools.product(range(model.n), *[range(model.c + 1)] * model.n))
    number = {state: i for i, state in enumerate(states)}
    transition = np.zeros((len(states), model.n, len(states)))
    reward = np.zeros((len(states), model.n))
    for i, (mark, *lengths) in enumerate(states):
        reward[i] = -sum(lengths) / model.n
        for came, *served in itertools.product((0, 1), repeat=1 + model.n):
            chance = model.arrival if came else 1 - model.arrival
            after, lost = [], 0
            for q, (length, s) in enumerate(zip(lengths, served, strict=True)):
                chance *= model.p if s else 1 - model.p
                there = max(0, length + (came if q == mark else 0) - s)
                lost += there > model.c
                after.append(min(model.c, there))
            reward[i] -= chance * lost * (10 if model.overflow == "lost" else 0) / model.n
            for a in range(model.n):
                transition[i, a, number[(a, *after)]] += chance
    return states, TabularMDP(transition, reward)


SMALL = [
    QueueModel(1, 0.6, 3),
    QueueModel(2, 0.5, 3),
    QueueModel(3, 0.45, 2),
    QueueModel(3, 0.45, 2, arrival=0.7, overflow="paper"),
    QueueModel(4, 0.3, 1, arrival=0.9),
]


@pytest.mark.parametrize("model", SMALL)
def test_with_k_equal_to_n_the_surrogate_is_the_joint_chain(model):
    states, chain = joint_chain(model)
    joint = discounted_values(chain, model.gamma)
    table = QueueTable(model, model.n).solve(1e-9)
    for i, (mark, *lengths) in enumerate(states):
        others = lengths[:mark] + lengths[mark + 1 :]
        place = int(table.others.rank(np.array(others))) if others else 0
        assert table.values[lengths[mark], place] == pytest.approx(joint.v[i], abs=1e-6)


@pytest.mark.parametrize("model", SMALL[1:])
def test_with_k_equal_to_n_the_rule_takes_an_optimal_action_of_the_joint_chain(model):
    states, chain = joint_chain(model)
    joint = discounted_values(chain, model.gamma)
    table = QueueTable(model, model.n).solve(1e-9)
    rule = table.rule()
    for i, (mark, *lengths) in enumerate(states):
        others = sorted(lengths[:mark] + lengths[mark + 1 :])
        slot = rule.here[int(table.others.rank(np.array(others))), lengths[mark]]
        queue = mark
        if slot:
            queue = next(q for q in range(model.n) if q != mark and lengths[q] == others[slot - 1])
        assert joint.q[i, queue] >= joint.q[i].max() - 1e-7


def test_the_surrogates_have_the_sizes_that_the_page_states():
    # (c + 1) C(c + k - 1, k - 1): 31 x C(32, 2) = 31 x 496; 31 x C(33, 3) = 31 x 5456; 31 x C(34, 4) = 31 x 46376
    assert [surrogate_states(k, 30) for k in (1, 2, 3, 4, 5)] == [31, 961, 15_376, 169_136, 1_437_656]
    assert QueueTable(QueueModel(), 3).values.size == 15_376


def test_a_queues_transition_by_hand():
    model = QueueModel(2, 0.75, 2)
    # no job: 1 -> 0 with .75, stays with .25. With one: served at once with .75, else one longer, a full one stays full
    np.testing.assert_allclose(model.kernel(0.0), [[1, 0, 0], [0.75, 0.25, 0], [0, 0.75, 0.25]])
    np.testing.assert_allclose(model.kernel(1.0), [[0.75, 0.25, 0], [0, 0.75, 0.25], [0, 0, 1]])
    np.testing.assert_allclose(model.kernel(0.5)[0], [0.875, 0.125, 0])


def test_the_reward_charges_the_job_that_is_lost_and_nothing_in_the_papers_words():
    # marked queue full (2), other one 1: -(2 + 1) / 2, and a loss with chance .25 costs 10 / 2
    lost = QueueTable(QueueModel(2, 0.75, 2), 2)
    paper = QueueTable(QueueModel(2, 0.75, 2, overflow="paper"), 2)
    assert lost.reward[2, 1] == pytest.approx(-1.5 - 0.25 * 10 / 2)
    assert paper.reward[2, 1] == pytest.approx(-1.5)
    assert lost.reward[1, 1] == paper.reward[1, 1] == pytest.approx(-1)


def test_to_the_papers_letter_the_best_queue_is_a_full_one():
    # slow service, an empty and a full queue, the marked one elsewhere
    seen = np.array([0, 6])
    for overflow, wanted in (("lost", 0), ("paper", 6)):
        table = QueueTable(QueueModel(3, 0.2, 6, overflow=overflow), 2).solve()
        assert seen[table.rule().elsewhere[table.index.rank(seen)]] == wanted


def test_two_hundred_slots_have_numbers_of_their_own():
    """Marked 0, others 150 times 0 and 49 times 1 = c; to the paper's letter slot 151, the first full one, is best."""
    table = QueueTable(QueueModel(200, 0.2, 1, overflow="paper"), 200).solve()
    others = np.repeat([0, 1], [150, 49])
    assert table.rule().here[int(table.others.rank(others)), 0] == 151
    # where the marked one is not among them, of 151 empty and 49 full ones: place 151
    assert table.rule().elsewhere[int(table.index.rank(np.append(others, 0)))] == 151


def test_thinning_keeps_the_load_of_the_whole_system():
    model = QueueModel.with_load(20, 0.9)
    table, literal = QueueTable(model, 2), QueueTable(model, 2, thin=False)
    assert model.load == pytest.approx(0.9)
    assert table.arrival / (2 * model.p) == pytest.approx(0.9)
    assert literal.arrival / (2 * model.p) == pytest.approx(9.0)  # ten times more than two queues can serve
    assert QueueModel().load == pytest.approx(0.025)  # 1 / (50 x .8)


def test_a_solved_table_is_as_near_to_the_fixed_point_as_it_says():
    model = QueueModel(3, 0.4, 4)
    exact = QueueTable(model, 3).solve(1e-10).values
    for sweeps in (3, 10, 30):
        table = QueueTable(model, 3).solve(0.0, max_sweeps=sweeps)
        rest = table.backup() - table.values
        middle = (rest.max() + rest.min()) / 2 * model.gamma / (1 - model.gamma)
        assert np.abs(table.backup() + middle - exact).max() <= table.error + 1e-9
    assert np.abs(QueueTable(model, 3).solve(1e-3).values - exact).max() <= 1e-3


def test_a_table_goes_on_bit_for_bit_where_it_was_saved():
    model = QueueModel(5, 0.3, 5)
    whole = QueueTable(model, 3).fit(7)
    half = QueueTable(model, 3).fit(3)
    restored = QueueTable(model, 3)
    restored.load_state_dict(half.state_dict())
    restored.fit(4)
    assert (restored.values == whole.values).all()
    assert (restored.sweeps, restored.error) == (whole.sweeps, whole.error)
    with pytest.raises(UserError, match=r"values \[6, 21\]: expected \[6, 6\]"):
        QueueTable(model, 2).load_state_dict(half.state_dict())


def test_the_uniform_value_is_the_mean_over_ordered_lengths():
    table = QueueTable(QueueModel(3, 0.4, 2), 3).solve()
    index = MultisetIndex(3, 2)
    values = [table.values[m, int(index.rank(np.array(o)))] for m, *o in itertools.product(range(3), repeat=3)]
    assert table.uniform_value(table.values) == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueueModel(c=0), "c = 0: expected 1 or more"),
        (lambda: QueueModel(n=0), "n = 0: expected 1 or more"),
        (lambda: QueueModel(p=0.0), "p = 0.0: expected a chance above 0, 1 at most"),
        (lambda: QueueModel(p=1.1), "p = 1.1: expected a chance above 0, 1 at most"),
        (lambda: QueueModel(p=float("nan")), "p = nan: expected a chance above 0, 1 at most"),
        (lambda: QueueModel(arrival=0), "arrival = 0: expected a chance above 0, 1 at most"),
        (lambda: QueueModel(gamma=1), "gamma = 1: expected a number from 0 to less than 1"),
        (lambda: QueueModel(overflow="losst"), "overflow 'losst'; did you mean 'lost'?"),
        (lambda: QueueModel(penalty=-1), "penalty = -1: expected a finite number from 0 on"),
        (lambda: QueueModel.with_load(50, 1.0), "load = 1.0: expected a number above 0, less than 1"),
        (lambda: QueueModel.with_load(50, 0), "load = 0: expected a number above 0, less than 1"),
        (lambda: QueueModel.with_load(2, 0.1), "load = 0.1 of n = 2 queues needs p = 5: expected a load of 0.5 on"),
        (
            lambda: QueueModel.with_load(1, 0.9),
            "load = 0.9 of n = 1 queues needs p = 1.111: expected two queues or more",
        ),
        (lambda: QueueModel.with_load(0, 0.5), "n = 0: expected 1 or more"),
        (lambda: QueueTable(QueueModel(3), 4), "k = 4 of n = 3 local agents: expected 1 <= k <= n; the nearest is 3"),
        (
            lambda: QueueTable(QueueModel(), 6),
            "k = 6 at c = 30 needs 1.006e+07 states, allowed are 2e+06; the largest k that fits is 5",
        ),
    ],
)
def test_bad_input_is_one_clear_line(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message


def test_a_penalty_below_the_cost_of_waiting_is_pointed_out(caplog):
    with caplog.at_level(logging.WARNING, logger="marl"):
        QueueModel()
        assert not caplog.records  # 10 against .9 / .1 = 9
        QueueModel(gamma=0.99)
    assert [r.getMessage() for r in caplog.records] == [
        "a lost job costs 10, one that waits up to 99: full queues are worth feeding"
    ]
