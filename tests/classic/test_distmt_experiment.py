"""``distmt-lsvi`` at a tiny size: its rows, its findings, and what stopping and going on must not change."""

from __future__ import annotations

import numpy as np
import pytest

from marl.classic.experiments import experiment
from marl.classic.experiments.base import Row, Table
from marl.classic.experiments.distmt import DistMTExperiment, DistMTOptions
from marl.config import check_ranges
from marl.types import UserError

TINY = DistMTOptions(agents=(4, 1), tasks=2, separation=0.9, c_sep=0.8, k1=600, k2=200, delta=0.5)
EXPH, UNIFORM = "ExpPh", "uniform actions"


def finish(it: DistMTExperiment) -> list[Row]:
    rows: list[Row] = []
    while it.done < it.total:
        before = it.done
        rows += it.advance()
        assert it.done > before
    return rows


def table_of(runs: list[list[Row]]) -> Table:
    curves: dict[tuple[str, str], list[list[Row]]] = {}
    for i, rows in enumerate(runs):
        for row in rows:
            curves.setdefault((row.series, row.metric), [[] for _ in runs])[i].append(row)
    return {
        key: (np.array([r.x for r in of[0]]), np.array([[r.value for r in rows] for rows in of]))
        for key, of in curves.items()
    }


@pytest.fixture(scope="module")
def runs() -> list[list[Row]]:
    return [finish(DistMTExperiment(TINY, seed)) for seed in range(3)]


def test_every_number_of_agents_gives_a_point_and_every_metric_is_declared(runs):
    table = table_of(runs)
    assert {metric for _, metric in table} == set(DistMTExperiment.metrics)
    for series in ("T of the paper", "T tight", "stopped once covered", "names known"):
        assert table[series, "episodes"][0].tolist() == [1, 4]
    assert table["ExpPh, N = 4", "task_epsilon"][0].tolist() == [0, 1]


def test_episodes_are_those_of_the_rounds_by_hand(runs):
    """M = 2, delta .5: 6 x 2 x log 4 = 16.6, so T = 17 and 5 (tight: 2.8, so 3 and 1); K_1 = 600, K_2 = 200.

    One agent pays K_2 once for each task: 17 x 600 + 2 x 200; all four agents pay for what is new in round 1.
    """
    table = table_of(runs)
    assert table["T of the paper", "rounds"][1][0].tolist() == [17, 5]
    assert table["T tight", "rounds"][1][0].tolist() == [3, 1]
    paper = table["T of the paper", "episodes"][1]
    assert paper[:, 0].tolist() == [17 * 600 + 2 * 200] * 3
    assert ((paper[:, 1] >= 5 * 600 + 200) & (paper[:, 1] <= 5 * 600 + 2 * 200)).all()
    tight, stopped = (table[s, "episodes"][1] for s in ("T tight", "stopped once covered"))
    assert (tight <= paper).all() and (stopped <= paper).all() and tight[:, 1].tolist() == [600 + 200] * 3
    assert table["names known", "episodes"][1].tolist() == [[400, 100]] * 3


def test_it_identifies_the_tasks_and_solves_them(runs):
    table = table_of(runs)
    assert (table[EXPH, "accuracy"][1] == 1).all() and (table[EXPH, "groups"][1] == 2).all()
    assert (table[EXPH, "epsilon"][1] <= TINY.epsilon).all() and (table[EXPH, "merged"][1] == 0).all()
    assert (table["T of the paper", "covered"][1] == 2).all()


def test_findings_are_ratios_to_the_fewest_agents(runs):
    table = table_of(runs)
    found = {finding.name: finding for finding in DistMTExperiment.findings(table, TINY)}
    episodes = table["T of the paper", "episodes"][1]
    ratio = found["N x episodes per agent, N = 4 over N = 1, T of the paper"]
    np.testing.assert_allclose(ratio.values, 4 * episodes[:, 1] / episodes[:, 0])
    assert found["N x T, N = 4 over N = 1, by rounding T up"].values.tolist() == [20 / 17] * 3
    assert all(finding.values.shape == (3,) for finding in found.values())
    assert found["K_1 that Theorem 1 asks (factors 1), here 600"].values[0] > 1e8


def test_tasks_of_one_value_show_up_as_merged():
    """Fewer, shorter runs: two tasks with equal values share one label, however many agents."""
    it = DistMTExperiment(DistMTOptions(agents=(4,), tasks=2, separation=0.0, c_sep=0.8, k1=600, k2=200), 0)
    table = table_of([finish(it)])
    assert table[EXPH, "merged"][1].tolist() == [[2]] and table[EXPH, "groups"][1].tolist() == [[1]]
    assert table["T of the paper", "covered"][1].tolist() == [[1]] and table[EXPH, "epsilon"][1][0, 0] > 1
    assert ("T of the paper", "episodes") in table
    assert not any(series == "stopped once covered" for series, _ in table)  # never covered, so it never stopped
    assert not any("stopped" in finding.name for finding in DistMTExperiment.findings(table, it.options))


@pytest.mark.parametrize("missed", [0, 1])
def test_where_a_run_missed_a_task_nothing_is_said_of_stopping(runs, missed):
    """Either N = 1 or N = 4 has no episodes after which all tasks were covered."""
    table, stopped = dict(table_of(runs)), ("stopped once covered", "episodes")
    whole = [finding.name for finding in DistMTExperiment.findings(table, TINY)]
    agents, episodes = table[stopped]
    table[stopped] = np.delete(agents, missed), np.delete(episodes, missed, axis=1)
    left = [finding.name for finding in DistMTExperiment.findings(table, TINY)]
    assert [name for name in whole if name not in left] == [
        "N x episodes per agent, N = 4 over N = 1, stopped once covered"
    ]


@pytest.mark.parametrize("stops", [1, 4, 7])
def test_saved_in_the_middle_and_restored_it_measures_the_same(runs, stops):
    first = DistMTExperiment(TINY, 0)
    rows = [row for _ in range(stops) for row in first.advance()]
    second = DistMTExperiment(TINY, 0)
    second.load_state_dict(first.state_dict())
    first.advance()
    assert second.done < second.total and rows + finish(second) == runs[0]


def test_a_finished_one_can_be_restored():
    it, again = (DistMTExperiment(TINY, 0) for _ in range(2))
    finish(it)
    again.load_state_dict(it.state_dict())
    assert again.done == again.total


def test_it_is_the_experiment_of_that_name():
    assert experiment("distmt-lsvi") is DistMTExperiment


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"^agents: expected different numbers, got 4,4$"):
        DistMTExperiment(DistMTOptions(agents=(4, 4)), 0)
    with pytest.raises(UserError, match=r"^agents: expected different numbers, got none$"):
        DistMTExperiment(DistMTOptions(agents=()), 0)
    with pytest.raises(UserError, match=r"^20 tasks 0.36 apart: the best has value"):
        DistMTExperiment(DistMTOptions(tasks=20), 0)
    with pytest.raises(UserError, match=r"^epsilon: expected 1e-09 or more, got 1e-200$"):
        check_ranges(DistMTOptions(epsilon=1e-200))  # its square is 0, and K_2 would divide by it at the run's end
    with pytest.raises(UserError, match=r"^delta: expected a number between 0 and 1"):
        DistMTExperiment(DistMTOptions(delta=0.0), 0)
