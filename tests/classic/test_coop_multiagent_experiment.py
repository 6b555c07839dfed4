"""The experiment ``coop-lsvi-multiagent`` at a small size, stopped and resumed, and its example."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from experiment_tools import finished, table_of

from examples import classic_pareto
from marl.classic.experiments import experiment
from marl.classic.experiments.cooperation import grid
from marl.classic.fronts import hypervolume
from marl.classic.instances import make_linear_multiagent
from marl.classic.multiagent_lsvi import flat_threshold, rounds_bound
from marl.classic.planning import convex_coverage_set
from marl.types import UserError

KIND = experiment("coop-lsvi-multiagent")
SMALL = {"episodes": 400, "weights": 21}


def plain(state):
    """A state with its arrays aside, the rest as JSON keeps it."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.copy() if isinstance(state, np.ndarray) else json.loads(json.dumps(state))


@pytest.mark.parametrize("pieces", [1, 40, 90])
def test_a_stopped_experiment_goes_on_bit_for_bit(pieces):
    first, second = (KIND(KIND.Options(**SMALL), 3) for _ in range(2))
    for _ in range(pieces):
        first.advance()
    second.load_state_dict(plain(first.state_dict()))
    assert 0 < second.done == first.done < first.total
    assert finished(first) == finished(second)


def test_rows_and_findings_are_those_that_are_announced_and_seeds_differ():
    options = KIND.Options(**SMALL)
    runs = [finished(KIND(options, seed)) for seed in (0, 1)]
    assert {row.metric for row in runs[0]} == set(KIND.metrics)
    assert {row.series for row in runs[0]} == {"cooperating", "isolated", "centralised", "exact"}
    assert all(np.isfinite(row.value) for rows in runs for row in rows)
    assert runs[0] != runs[1]
    findings = KIND.findings(table_of(runs, without=["front"]), options)
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.values.shape == (2,) and np.isfinite(finding.values).all() for finding in findings)


def test_cooperating_agents_come_near_the_centralised_ones_and_leave_the_isolated_behind():
    """4000 episodes, the defaults otherwise; isolated agents ignore v_t and cannot stop regretting it."""
    options = KIND.Options(episodes=4000, weights=51)
    rows = finished(KIND(options, 0))
    found = {
        finding.name: float(finding.values[0])
        for finding in KIND.findings(table_of([rows], without=["front"]), options)
    }
    assert found["exponent of regret, cooperating"] < 0.6 < found["exponent of regret, isolated"]
    assert found["regret, cooperating / centralised"] < 1.3
    assert found["regret, isolated / cooperating"] > 3
    assert found["rounds, cooperating / centralised"] < 3
    assert found["hypervolume, cooperating"] > 99 > found["hypervolume, isolated"]
    assert found["dominated by the exact front, cooperating"] < 0.05
    assert 0.7 < found["rounds at T = 4000 / rounds at T = 500"] < 1.3
    assert found["Bayes regret, cooperating"] < found["regret, cooperating"] / 4000 + 0.01, "Proposition 3"


def test_the_front_is_drawn_as_points_and_its_hypervolume_is_the_reported_one():
    options = KIND.Options(**SMALL, reference=2.0)
    rows = finished(KIND(options, 0))
    fronts = {
        series: np.array([(row.x, row.value) for row in rows if (row.series, row.metric) == (series, "front")])
        for series in ("exact", "cooperating")
    }
    np.testing.assert_array_equal(fronts["exact"], convex_coverage_set(make_linear_multiagent(0)).values)
    part = hypervolume(fronts["cooperating"], [2, 2]) / hypervolume(fronts["exact"], [2, 2])
    reported = [row.value for row in rows if (row.series, row.metric) == ("cooperating", "hypervolume")]
    assert reported[-1] == pytest.approx(part)


def test_regret_that_stays_linear_is_worth_a_warning(caplog):
    """Without a bonus the agents settle on what they saw first; with the default they do not, and nobody complains."""
    finished(KIND(KIND.Options(episodes=1200, weights=5, instance=2), 0))
    assert not caplog.records
    finished(KIND(KIND.Options(episodes=1200, weights=5, instance=2, beta=0.0), 0))
    assert "regret still grows linearly" in caplog.text
    assert caplog.text.count("\n") == 1


def test_the_warning_names_beta_and_does_not_ask_for_more_where_it_is_huge_already(caplog):
    """With beta = 1000 all values stay at their clips, and more of it would not help."""
    finished(KIND(KIND.Options(episodes=1200, weights=5, beta=1000.0), 0))
    assert "beta = 1e+03: exploration failed or is not over; try another beta (1 to 4 are useful)" in caplog.text
    assert "larger beta" not in caplog.text


@pytest.mark.parametrize(("late", "warned"), [(0.03, True), (0.025, False)])
def test_the_warning_compares_what_an_episode_costs_however_long_the_quarters_are(late, warned, caplog):
    """Measured at 4800, 9600, 14 400 and 20 000: .03 an episode until 9600, ``late`` since; the last part has 5600."""
    agents = KIND(KIND.Options(), 0)
    for mark in grid(20_000):
        agents._regret["cooperating"] = 0.03 * min(mark, 9600) + late * max(mark - 9600, 0)
        agents._look_back(mark)
    assert ("(0.03 an episode)" in caplog.text) is warned
    assert len(caplog.records) == warned


def test_the_pages_bounds_are_those_of_the_defaults():
    """(10 x 8 + 1) x 6 = 486 with lambda = 1; lambda = .1, the default, adds log(40 001) / log(4001) - 1 = .278."""
    options, mdp = KIND.Options(), make_linear_multiagent()
    sizes = options.episodes, mdp.agents, mdp.dim
    threshold = flat_threshold(*sizes, options.budget)
    bounds = [rounds_bound(*sizes, mdp.horizon, threshold, regulariser) for regulariser in (1.0, options.regulariser)]
    page = (Path(__file__).parents[2] / "docs/classic/coop-lsvi-multiagent.md").read_text(encoding="utf-8")
    assert f"C = `--budget` (Remark 9), {options.budget:g} by default" in page
    assert f"S = {threshold:.2f}" in page
    assert f"(d C + 1) H = {bounds[0]:.0f}" in page
    assert f"{bounds[1]:.0f} for lambda = .1" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 5.0}, "reference: expected less than the front's lowest, 2.73"),
        ({"episodes": 3}, "episodes: expected 16 or more"),
        ({"weights": 1}, "weights: expected 2 or more"),
        ({"regulariser": 1e-9}, "regulariser: expected 0.001 or more, got 1e-09"),
        ({"beta": math.inf}, "beta: expected a finite number, 0 or more, got inf"),
        ({"threshold": math.inf}, "threshold: expected a finite number, 0 or more, got inf"),
        ({"threshold": -1.0}, "threshold: expected 0 or more"),
    ],
)
def test_options_that_make_no_sense_are_named_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        KIND(KIND.Options(**options), 0)


def test_the_example_finds_most_of_the_front(capsys):
    found = classic_pareto.main(episodes=1500)
    assert found["hypervolume"] > 0.95
    assert found["rounds"] < 150
    assert "exact front" in capsys.readouterr().out
