"""DistMT-LSVI on locks whose optimal values are known: who is identified, who is merged, and who pays for it."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest

from examples import classic_distmt
from marl.classic.distmt import DistMTLSVI, History
from marl.classic.distmt_constants import PracticalConstants, Problem, TheoryConstants, learning_rounds
from marl.classic.instances import make_combination_lock, make_lock_family
from marl.classic.mdp import LinearMDP
from marl.classic.planning import evaluate_policy, optimal_values
from marl.types import UserError

QUICK = PracticalConstants(k1=20, k2=30)
ENOUGH = PracticalConstants(k1=1500, k2=800)


def apart(tasks: int = 3) -> list[LinearMDP]:
    """Locks of values 1.63, 1.13, .63, ...: .5 apart, each with a code of its own."""
    return make_lock_family(tasks, separation=0.5, slip=0.05, horizon=5)


def alike() -> list[LinearMDP]:
    """Two locks of the same value that open with different codes."""
    return make_lock_family(2, separation=0.0, differ="both")


@pytest.mark.parametrize(
    "options", [{}, {"linkage": "centroid"}, {"same_round": "merge"}, {"rounds": "tight"}], ids=str
)
def test_every_task_is_identified_and_solved_where_c_sep_holds(options):
    for seed in range(4):
        model = DistMTLSVI(apart(), 4, 0.45, ENOUGH, epsilon=0.1, seed=seed, **options).fit()
        report = model.report()
        assert report.accuracy == 1 and report.groups == 3 and not report.merges and report.ambiguous == 0
        assert report.spread.max() <= 0.45 / 2 and report.optimal == 1 and report.covered == 3
        for i, task in enumerate(model.tasks):
            label = int(model.history.label[model.history.task == i][0])
            value = evaluate_policy(task, model.policy(label))[0, 0]
            assert optimal_values(task).v[0, 0] - value == pytest.approx(report.task_gap[i]) and value > 0
            assert report.task_gap[i] <= 0.1


def test_tasks_of_equal_value_are_merged_and_it_says_so(caplog):
    """One label for both; its policy opens the lock of the agent that opened the label, not always the other's."""
    with caplog.at_level(logging.WARNING, "marl"):
        model = DistMTLSVI(alike(), 2, 0.4, ENOUGH, seed=0)
    assert [r.getMessage() for r in caplog.records] == [
        "tasks 0 and 1 have V*(s_0) = 1.531 and 1.531, not more than c_sep = 0.4 apart: they may be merged"
    ]
    report = model.fit().report()
    assert report.groups == 1 and report.merges == {0: [0, 1]} and report.covered == 1
    assert report.episodes_covered is None and report.accuracy < 0.9
    assert min(report.task_gap) <= 0.1 < 1 < max(report.task_gap) and report.optimal < 0.9


def test_the_warning_names_a_pair_and_counts_the_others(caplog):
    """Values .5 apart: at c_sep = .45 none is too near, at .7 the pairs (0, 1) and (1, 2) are."""
    DistMTLSVI(apart(), 2, 0.45, QUICK)
    assert not caplog.records
    DistMTLSVI(apart(), 2, 0.7, QUICK)
    (record,) = caplog.records
    assert (
        record.getMessage().startswith("tasks 0 and 1 have") and " apart (as is 1 other pair): " in record.getMessage()
    )


def test_too_few_episodes_split_a_task_and_complete_linkage_more_than_centroid():
    found = {}
    for linkage in ("complete", "centroid"):
        reports = [
            DistMTLSVI(apart(), 4, 0.45, PracticalConstants(150, 150), linkage=linkage, seed=s).fit().report()
            for s in range(4)
        ]
        found[linkage] = np.mean([r.groups for r in reports]), np.mean([r.accuracy for r in reports])
    assert found["complete"][0] > found["centroid"][0] >= 3
    assert found["complete"][1] < found["centroid"][1]


def test_all_agents_that_meet_a_new_task_in_one_round_pay_for_it_and_nobody_later():
    """l is frozen within a round: 4 agents, one task, 4 phases 2; F keeps the first one's 30 episodes."""
    model = DistMTLSVI(apart(1), 4, 5.0, QUICK).fit(2)
    assert model.history.learned.tolist() == [[True] * 4, [False] * 4]
    assert model.history.label.tolist() == [[0] * 4] * 2
    assert model.server.table[0].data.count.tolist() == [30] * 5
    assert model.episodes(1).tolist() == [20 + 30] * 4 and model.episodes(2).tolist() == [2 * 20 + 30] * 4


def test_merging_the_same_round_keeps_what_all_four_paid_for():
    """Each of the 4 x 30 episodes is in the sums: Lambda's trace is d + 120 with features of norm 1."""
    data = DistMTLSVI(apart(1), 4, 5.0, QUICK, same_round="merge").fit(1).server.table[0].data
    assert data.count.tolist() == [120] * 5
    np.testing.assert_allclose(np.trace(np.linalg.inv(data.inverse), axis1=-2, axis2=-1), data.dim + 120)


def test_an_agent_is_left_with_its_own_policy_or_the_one_in_the_table():
    model = DistMTLSVI(apart(), 3, 0.45, ENOUGH, seed=3).fit(4)
    for task, label, learned, _, gap in zip(*(a.ravel() for a in model.history), strict=True):
        if not learned:
            value = evaluate_policy(model.tasks[task], model.policy(label))[0, 0]
            assert gap == pytest.approx(model.optimal[task] - value)


def test_rounds_by_hand():
    """M = 5, delta = .1: 6 x 5 x log 50 = 117.4 and 5 x log 50 = 19.6, shared by N and rounded up, one at least."""
    assert [learning_rounds(5, n, 0.1) for n in (1, 4, 16, 1000)] == [118, 30, 8, 1]
    assert [learning_rounds(5, n, 0.1, "tight") for n in (1, 4, 16)] == [20, 5, 2]


def test_tight_rounds_miss_a_task_no_more_often_than_delta():
    """The bound of the docstring, and a thousand draws of it: 5 tasks, delta .2, 17 draws."""
    draws = np.random.default_rng(0).integers(5, size=(1000, learning_rounds(5, 1, 0.2, "tight")))
    missed = np.mean([len(set(row)) < 5 for row in draws.tolist()])
    assert 0.02 < missed <= 0.2


def planted(task: list[list[int]], label: list[list[int]], learned: list[list[int]]) -> DistMTLSVI:
    """A run of 2 agents and 3 tasks that happened to go so."""
    model = DistMTLSVI(apart(), 2, 0.45, QUICK).fit(1)
    solved = model.server.table[0]
    model.server.table = [solved] * (np.max(label) + 1)
    shape = np.array(task)
    model.history = History(
        shape, np.array(label), np.array(learned, bool), shape * 1.0 + np.arange(2) / 10, np.zeros(shape.shape)
    )
    return model


def test_the_report_of_a_run_by_hand():
    """Tasks 0 and 2 are each one label; round 2 opens a second label for task 0: 5 of 6 right.

    Episodes: 3 x 20 + 30 x (2, 2) phases 2; every task had a label after 2 of the 3 rounds: 2 x 20 + 30 x (2, 1).
    With the names known: 3 tasks x 30 over 2 agents.
    """
    report = planted([[0, 1], [2, 0], [1, 0]], [[0, 1], [2, 0], [1, 3]], [[1, 1], [1, 0], [0, 1]]).report()
    assert report.accuracy == pytest.approx(5 / 6) and report.groups == 4 and not report.merges
    assert report.episodes.tolist() == [120, 120] and report.episodes_covered.tolist() == [100, 70]
    assert report.episodes_oracle == 45
    np.testing.assert_allclose(report.spread, [0.1, 0.1, 0.0])
    assert report.label == "not covered by Theorem 1"


def test_the_report_of_a_merge_by_hand():
    """Task 1 is put into task 0's label, so it never has its own: its two assignments are wrong, 4 of 6 right."""
    model = planted([[0, 1], [2, 0], [1, 0]], [[0, 0], [1, 0], [0, 0]], [[1, 1], [1, 0], [0, 0]])
    report = model.report()
    assert report.merges == {0: [0, 1]} and report.accuracy == pytest.approx(4 / 6)
    assert report.covered == 2 and report.episodes_covered is None and model.covered(1) == 1


def test_a_task_never_met_is_not_a_number():
    report = planted([[0, 1]], [[0, 1]], [[1, 1]]).report()
    assert np.isnan(report.spread[2]) and np.isnan(report.task_gap[2]) and report.episodes_oracle == 30


def test_saved_and_restored_it_goes_on_bit_for_bit():
    def make() -> DistMTLSVI:
        return DistMTLSVI(apart(), 3, 0.45, QUICK, same_round="merge", seed=5)

    whole, first, second = make().fit(5), make().fit(2), make()
    saved = first.state_dict()
    first.fit(1)
    second.load_state_dict(saved)
    second.fit(3)
    for a, b in zip(whole.history, second.history, strict=True):
        np.testing.assert_array_equal(a, b)
    for x, y in zip(whole.server.table, second.server.table, strict=True):
        np.testing.assert_array_equal(x.theta, y.theta)


def test_fit_goes_up_to_t_and_another_seed_is_another_run():
    runs = [DistMTLSVI(apart(), 8, 0.45, QUICK, seed=s).fit() for s in (0, 0, 1)]
    assert [run.rounds for run in runs] == [learning_rounds(3, 8, 0.1)] * 3
    assert runs[0].fit().rounds == runs[0].total_rounds
    np.testing.assert_array_equal(runs[0].history.value, runs[1].history.value)
    assert not np.array_equal(runs[0].history.value, runs[2].history.value)


def test_the_constants_of_the_theory_by_hand():
    """d = 2, H = 1, M = 1, delta .5: log(2 / .5) = 1.386 for c_sep = 1, log(2 / .25) = 2.079 for epsilon = .5.

    K_1 = 8 x 1.386 = 11.1, K_2 = 8 x 2.079 / .25 = 66.5, beta_1 = 2 sqrt 1.386 = 2.355, beta_2 = 2 sqrt 2.079 = 2.884.
    """
    first, second = TheoryConstants().phases(Problem(2, 1, 1, 0.5, 0.5, 1.0))
    assert (first.episodes, second.episodes) == (12, 67)
    assert (first.beta_plan, second.beta_plan) == (pytest.approx(2.3548, abs=1e-4), pytest.approx(2.8840, abs=1e-4))


def test_the_theory_refuses_what_nobody_can_wait_for():
    """d = 8, H = 5: 8^3 x 5^6 = 8 million, times a logarithm of about 8, over .45^2 or .1^2."""
    with pytest.raises(
        UserError, match=r"imply K_1 = 3\.\d*e\+08 and K_2 = 7\.\d*e\+09 .* or take PracticalConstants$"
    ):
        DistMTLSVI(apart(), 2, 0.45, TheoryConstants())
    line = DistMTLSVI(apart(), 2, 0.45, QUICK).theory()
    assert "K_1 = 3" in line and "e+08 episodes" in line and "\n" not in line
    assert TheoryConstants(c_k=1e-9).phases(Problem(8, 5, 3, 0.1, 0.1, 0.45))[0].episodes == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TheoryConstants(c_beta=-1.0), "c_beta: expected a number above 0, got -1.0"),
        (lambda: TheoryConstants(c_k=float("nan")), "c_k: expected a number above 0, got nan"),
        (lambda: learning_rounds(0, 2, 0.1), "tasks: expected 1 or more, got 0"),
        (lambda: learning_rounds(3, 0, 0.1), "agents: expected 1 or more, got 0"),
        (lambda: learning_rounds(3, 2, 5.0), "delta: expected a number between 0 and 1, got 5.0"),
        (lambda: DistMTLSVI(apart(), 2, 0.45, QUICK).fit(-1), "n_rounds: expected 0 or more, got -1"),
    ],
)
def test_constants_and_rounds_that_make_no_sense_are_said_in_one_line(make, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        make()


def test_longer_phases_bring_fingerprints_closer():
    spreads = [
        DistMTLSVI(apart(), 4, 0.45, PracticalConstants(k1, 10), seed=0).fit(12).report().spread.max()
        for k1 in (100, 1600, 25600)
    ]
    assert all(small < 0.6 * large for large, small in pairwise(spreads))


def test_bad_input_is_one_line():
    def refused(message: str, tasks=None, agents=2, constants=QUICK, c_sep=0.45, **options) -> None:
        with pytest.raises(UserError, match=message):
            DistMTLSVI(apart() if tasks is None else tasks, agents, c_sep, constants, **options)

    lock = make_combination_lock(n=3, horizon=5)
    refused("^tasks: expected 1 or more, got none$", tasks=[])
    refused("^task 1: expected the features and the horizon of task 0", tasks=[lock, make_combination_lock()])
    moved = LinearMDP(lock.features, lock.theta, lock.mu, np.eye(4)[1])
    refused("^task 1: expected the s_0 of task 0", tasks=[lock, moved])
    refused("^start: expected one fixed", tasks=[LinearMDP(lock.features, lock.theta, lock.mu, np.full(4, 0.25))])
    refused("^agents: expected 1 or more, got 0$", agents=0)
    refused("^replan_growth: expected 1 .* or more, got 0.5$", replan_growth=0.5)
    refused("^exploration: 'expp' is not a choice; did you mean 'expph'", exploration="expp")
    refused("^rounds: 'papers' is not a choice; did you mean 'paper'", rounds="papers")
    refused("^delta: expected a number between 0 and 1, got 1$", delta=1)
    refused("^epsilon: expected a number above 0, got 0$", epsilon=0)
    refused("^c_sep: expected a number above 0, got nan$", c_sep=float("nan"))
    with pytest.raises(UserError, match=r"^k2: expected 1 episode or more, got 0$"):
        PracticalConstants(k2=0)
    with pytest.raises(UserError, match=r"^beta_plan: expected 0 or more, got -1$"):
        PracticalConstants(beta_plan=-1)
    with pytest.raises(UserError, match=r"^report: no round was done yet"):
        DistMTLSVI(apart(), 2, 0.45, QUICK).report()


def test_the_example_shows_four_labels_and_the_twins(capsys):
    classic_distmt.main(k1=1500, k2=300, agents=4)
    shown = capsys.readouterr().out
    assert "4 labels for 4 tasks, 100.0% of the assignments labelled right" in shown
    assert "twins: labels shared by several tasks {0: [0, 1]}" in shown
