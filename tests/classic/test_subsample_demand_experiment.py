"""The experiment subsample-demand at a tiny size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from examples import classic_subsample
from marl.classic.experiments import EXPERIMENTS, experiment
from marl.classic.experiments.subsample_demand import DemandOptions, SubsampleDemand
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError

TINY = {"ks": (1, 2), "m": 5, "small": 2, "agents": 6, "runs": 10, "steps": 20, "sweeps": 5}
TIMES = ("seconds", "crowd_milliseconds")


def run(experiment, until=None):
    rows = []
    while experiment.done < experiment.total and (until is None or experiment.done < until):
        rows += experiment.advance()
    return rows


def untimed(rows):
    return [row for row in rows if row.metric not in TIMES]


@pytest.mark.parametrize("backup", ["exact", "frozen", "resample"])
def test_saved_after_the_first_table_it_goes_on_bit_for_bit(backup):
    options = DemandOptions(**TINY, backup=backup)
    whole = run(SubsampleDemand(options, 3))
    first, second = SubsampleDemand(options, 3), SubsampleDemand(options, 3)
    rows = run(first, until=1)
    second.load_state_dict(first.state_dict())
    assert untimed(rows + run(second)) == untimed(whole)
    assert {row.metric for row in whole} >= {"seconds", "gap", "mean_gap", "bound", "discounted", "sweeps", "cells"}
    assert {row.metric for row in whole} <= set(SubsampleDemand.metrics)
    assert {row.series for row in whole} == {backup}


def test_saved_in_the_middle_of_a_table_it_goes_on_bit_for_bit(monkeypatch):
    """Chunks of no time: a sweep each."""
    whole = run(SubsampleDemand(DemandOptions(**TINY), 0))
    monkeypatch.setattr("marl.classic.experiments.subsample_demand.CHUNK_SECONDS", 1e-9)
    first, second = (SubsampleDemand(DemandOptions(**TINY), 0) for _ in range(2))
    rows = run(first, until=1)
    for _ in range(7):
        rows += first.advance()
    assert first.done == 1
    second.load_state_dict(first.state_dict())
    assert untimed(rows + run(second)) == untimed(whole)


def test_resampled_tables_are_those_of_ks_alone_and_each_has_its_own_time(monkeypatch):
    """Nothing is lifted, so k = 2 is not needed for 3; by a clock that ticks when it is read 5 sweeps are alike."""
    monkeypatch.setattr("time.process_time", itertools.count().__next__)
    experiment = SubsampleDemand(DemandOptions(**TINY | {"ks": (3, 1)}, backup="resample"), 0)
    assert experiment.total == 2
    seconds = {row.x: row.value for row in run(experiment) if row.metric == "seconds"}
    assert list(seconds) == [1, 3]
    assert seconds[1] == seconds[3]


@pytest.mark.parametrize("until", [0, 1])
def test_the_time_to_learn_holds_no_compiling_where_a_saved_run_goes_on_either(until, monkeypatch):
    """By a clock that counts sweeps, of which the first in a process takes 1000: there everything is compiled."""
    clock, fit = [0], SubsampleQ.fit

    def timed(table, sweeps):
        clock[0] += sweeps + 999 * (clock[0] == 0)
        return fit(table, sweeps)

    monkeypatch.setattr(SubsampleQ, "fit", timed)
    monkeypatch.setattr("time.process_time", lambda: clock[0])
    options = DemandOptions(**TINY, backup="resample")
    first, second = (SubsampleDemand(options, 0) for _ in range(2))
    run(first, until)
    second.load_state_dict(first.state_dict())
    clock[0] = 0
    assert [row.value for row in run(second) if row.metric == "seconds"] == [5.0] * (2 - until)


def test_with_all_agents_sampled_the_exact_gap_is_0_and_below_it_the_gap_is_within_the_bound():
    found = {(row.metric, row.x): row.value for row in run(SubsampleDemand(DemandOptions(**TINY, backup="exact"), 0))}
    assert found["gap", 2] < 0.02 < found["gap", 1] < found["bound", 1]


def test_a_seed_is_what_happens_in_executions_and_which_samples_are_drawn():
    values = {
        (backup, seed): {r.metric: r.value for r in run(SubsampleDemand(DemandOptions(**TINY, backup=backup), seed))}
        for backup in ("exact", "frozen")
        for seed in (0, 1)
    }
    assert values["exact", 0]["gap"] == values["exact", 1]["gap"]
    assert values["frozen", 0]["noise"] != values["frozen", 1]["noise"]
    assert values["exact", 0]["discounted"] != values["exact", 1]["discounted"]


def test_lumped_tables_see_consumption_alone_and_a_crowd_is_executed():
    options = DemandOptions(**TINY, state="lumped", backup="exact", crowd=500)
    rows = run(SubsampleDemand(options, 0))
    assert {row.x for row in rows if row.metric == "crowd_discounted"} == {500}
    full = DemandOptions(**TINY, backup="exact")
    cells = [max(r.value for r in run(SubsampleDemand(o, 0)) if r.metric == "cells") for o in (options, full)]
    assert cells[0] < cells[1]


def test_the_findings_sum_the_seeds_up():
    options = DemandOptions(**TINY)
    ks = np.array([1.0, 2.0])
    table = {
        ("frozen", "gap"): (ks, np.array([[3.0, 1.0], [5.0, 2.0]])),
        ("frozen", "discounted"): (ks, np.array([[30.0, 31.0], [30.0, 33.0]])),
    }
    found = {f.name: f.values.tolist() for f in SubsampleDemand.findings(table, options)}
    assert found["worst gap, k = 1"] == [3, 5]
    assert found["discounted return, k = 2 less k = 1"] == [1, 3]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ks": ()}, "expected different numbers from 1 on"),
        ({"ks": (1, 60)}, "k = 60 of n = 50 local agents"),
        (
            {"ks": (1, 22)},
            "ks: k = 22 needs .* the largest k that fits is 7; --state lumped and --network-ks go further",
        ),
        ({"ks": (1,), "small": 22}, "small: k = 22 needs .* the largest k that fits is 7"),
        ({"ks": (2,), "crowd": 1}, "k = 2 of n = 1 local agents"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        SubsampleDemand(DemandOptions(**options), 0)


def test_the_command_line_finds_it():
    assert experiment("subsample-demand") is SubsampleDemand
    assert "Figures 1a, 1b and 1c" in EXPERIMENTS["subsample-demand"].about


def test_the_example_prints_what_a_reader_should_see(capsys):
    classic_subsample.main(n=2, agents=1000)
    printed = capsys.readouterr().out
    assert "k = 2" in printed and "1000 agents" in printed


def test_beyond_the_tables_networks_learn_and_go_on_bit_for_bit_from_the_middle_of_one():
    """A table for k = 1, networks for k = 3 and 6 of 6 agents; chunks of 100 of 150 steps: saved at step 100."""
    options = DemandOptions(**(TINY | {"ks": (1,)}), network_ks=(3, 6), network_steps=150)
    whole = run(SubsampleDemand(options, 0))
    assert [row.x for row in whole if row.series == "network" and row.metric == "discounted"] == [3, 6]
    first, second = SubsampleDemand(options, 0), SubsampleDemand(options, 0)
    rows = run(first, until=1)
    assert first.advance() == []
    second.load_state_dict(first.state_dict())
    assert untimed(rows + run(second)) == untimed(whole)


def test_more_agents_for_a_network_than_there_are_is_refused():
    with pytest.raises(UserError, match="k = 7 of n = 6"):
        SubsampleDemand(DemandOptions(**TINY, network_ks=(7,)), 0)


@pytest.mark.parametrize("name", ["ks", "network_ks"])
def test_a_number_of_agents_is_asked_for_once(name):
    with pytest.raises(UserError, match=rf"^{name}: expected different numbers from 1 on, got 2,3,2$"):
        SubsampleDemand(DemandOptions(**TINY | {name: (2, 3, 2)}), 0)


def test_samples_are_as_near_to_the_whole_as_theorem_4_3_says():
    rows = run(SubsampleDemand(DemandOptions(**(TINY | {"agents": 40, "runs": 200})), 0))
    found = {(row.metric, row.x): row.value for row in rows}
    for k in (1, 2):
        assert 0 < found["apart", k] <= found["apart_bound", k]


def test_nothing_follows_the_end():
    done = SubsampleDemand(DemandOptions(**(TINY | {"ks": (1,)})), 0)
    run(done)
    assert (done.advance(), done.done) == ([], 1)
