import copy
import json
import math

import numpy as np
import pytest

from examples import classic_coop_lsvi
from marl.classic.experiments import experiment
from marl.classic.experiments.coop_lsvi import (
    INSTANCES,
    CoopLSVIExperiment,
    CoopLSVIOptions,
    HeterogeneousExperiment,
    HeterogeneousOptions,
)
from marl.classic.experiments.cooperation import exponent, grid
from marl.types import UserError

SMALL = {
    CoopLSVIExperiment: CoopLSVIOptions(episodes=64, agents=2),
    HeterogeneousExperiment: HeterogeneousOptions(episodes=64, agents=2),
}


def finished(run):
    rows = []
    while run.done < run.total:
        rows += run.advance()
    return rows


def table(kind, options, seeds):
    found = {}
    for seed in seeds:
        curves = {}
        for row in finished(kind(options, seed)):
            curves.setdefault((row.series, row.metric), []).append((row.x, row.value))
        for key, points in curves.items():
            found.setdefault(key, []).append(points)
    return {key: (np.array(runs)[0, :, 0], np.array(runs)[:, :, 1]) for key, runs in found.items()}


@pytest.mark.parametrize("kind", SMALL)
def test_a_small_run_measures_what_it_promises(kind):
    run = kind(SMALL[kind], 0)
    rows = finished(run)
    assert run.done == run.total
    assert run.advance() == []
    assert {row.metric for row in rows} == set(kind.metrics)
    last = {(row.series, row.metric): row.value for row in rows}
    assert last["centralised", "rounds"] == 64
    assert last["isolated", "bytes"] == 0
    assert 0 < last["cooperating", "rounds"] < 64
    assert last["cooperating", "bytes"] == 8 * last["cooperating", "floats"]
    assert [row.x for row in rows if row.metric == "rounds_whole"] == [8, 16, 32, 64]
    assert [row.x for row in rows if (row.series, row.metric) == ("isolated", "regret")] == grid(64)


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_saved_in_the_middle_of_a_team_goes_on_with_the_same_rows(kind, monkeypatch):
    """64 episodes in pieces of 7: none of the 35 first ones ends a run."""
    monkeypatch.setattr("marl.classic.experiments.coop_lsvi.PIECE", 7)
    whole = finished(kind(SMALL[kind], 3))
    first = kind(SMALL[kind], 3)
    rows = [row for _ in range(35) for row in first.advance()]
    state = copy.deepcopy(first.state_dict())
    assert 0 < first.done < first.total
    second = kind(SMALL[kind], 3)
    second.load_state_dict(state)
    assert second.done == first.done
    assert rows + finished(second) == whole


@pytest.mark.parametrize("kind", SMALL)
def test_a_state_holds_arrays_and_json_values_only(kind):
    run = kind(SMALL[kind], 0)
    run.advance()
    json.dumps(run.state_dict(), default=lambda value: value.tolist() if isinstance(value, np.ndarray) else None)


@pytest.mark.parametrize("kind", SMALL)
def test_findings_have_a_number_for_each_seed(kind):
    found = {f.name: f.values for f in kind.findings(table(kind, SMALL[kind], range(3)), SMALL[kind])}
    for values in found.values():
        assert values.shape == (3,)
        assert np.isfinite(values).all()
    ratio = found["regret, cooperating"] / found["regret, centralised"]
    np.testing.assert_allclose(found["regret, cooperating / centralised"], ratio)
    np.testing.assert_allclose(found["rounds, cooperating / centralised"], 100 * found["rounds, cooperating"] / 64)


@pytest.mark.parametrize("instance", INSTANCES)
def test_every_instance_runs(instance):
    options = CoopLSVIOptions(episodes=16, agents=2, instance=instance)
    assert all(math.isfinite(row.value) for row in finished(CoopLSVIExperiment(options, 0)))


def test_a_threshold_that_is_given_is_the_threshold():
    run = CoopLSVIExperiment(CoopLSVIOptions(episodes=16, agents=2, threshold=0.0), 0)
    last = {(row.series, row.metric): row.value for row in finished(run)}
    assert last["cooperating", "rounds"] == 16


def test_the_exponent_is_the_slope_on_logarithmic_axes():
    x = np.array([1.0, 10, 100, 1000])
    curves = np.stack([3 * x, 2 * np.sqrt(x), np.full(4, 7.0)])
    np.testing.assert_allclose(exponent(x, curves), [1, 0.5, 0], atol=1e-12)
    late = np.where(x < 100, x**2, 1e4 * (x / 100) ** 0.5)  # only the last nine tenths of the episodes count
    np.testing.assert_allclose(exponent(x, late[None]), [0.5], atol=1e-12)


def test_curves_begin_at_the_first_and_end_at_the_last_episode():
    for episodes in (16, 64, 5000):
        points = grid(episodes)
        assert (points[0], points[-1]) == (1, episodes)
        assert len(points) <= 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CoopLSVIOptions(agents=0), "agents: expected 1 or more, got 0"),
        (CoopLSVIOptions(episodes=10), "episodes: expected 16 or more, got 10"),
        (CoopLSVIOptions(replan=0.5), "replan: expected 1 or more, got 0.5"),
        (CoopLSVIOptions(beta=-1.0), "beta: expected 0 or more, got -1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        CoopLSVIExperiment(options, 0)


def test_more_groups_than_agents_are_refused():
    with pytest.raises(UserError, match="groups: expected 2 at most, one agent in each, got 3"):
        HeterogeneousExperiment(HeterogeneousOptions(agents=2, groups=3), 0)


def test_the_command_line_finds_both():
    assert experiment("coop-lsvi") is CoopLSVIExperiment
    assert experiment("coop-lsvi-heterogeneous") is HeterogeneousExperiment


def test_the_example_shows_what_its_comments_say(capsys):
    regret = classic_coop_lsvi.main(episodes=400, agents=4)
    assert regret["centralised"] < regret["cooperating"] < regret["pooled, Algorithm 1"]
    assert regret["together, Algorithm 3"] < 0.5 * regret["isolated"]
    assert "theory    beta" in capsys.readouterr().out
