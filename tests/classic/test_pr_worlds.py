"""The experiments on the tabular worlds, at a size that takes a moment."""

from __future__ import annotations

import numpy as np
import pytest

from examples import classic_blocker
from marl.classic.experiments import EXPERIMENTS, experiment
from marl.classic.experiments.pr_worlds import (
    ALONE,
    ANNEALED,
    CONSTANT,
    METHODS,
    OPTIMUM,
    QD,
    SAME_STEP,
    BlockerOptions,
    LandmarksOptions,
    NavigationOptions,
    PRBlocker,
    PRLandmarks,
    PRNavigation,
)
from marl.classic.tabular import PolicyReciprocityQ
from marl.types import UserError

TINY = [
    (PRBlocker, BlockerOptions(blockers=1, episodes=300, points=3)),
    (PRLandmarks, LandmarksOptions(episodes=100, points=4)),
    (PRNavigation, NavigationOptions(episodes=100, points=4)),
]


def run(experiment):
    rows = []
    while experiment.done < experiment.total:
        rows += experiment.advance()
    return rows


def table_of(runs):
    """As the runner makes it: ``(series, metric)`` -> x and values by seed."""
    table = {}
    for key in {(row.series, row.metric) for row in runs[0]}:
        curves = [[(r.x, r.value) for r in rows if (r.series, r.metric) == key] for rows in runs]
        table[key] = (np.array([x for x, _ in curves[0]]), np.array([[value for _, value in c] for c in curves]))
    return table


@pytest.mark.parametrize(("kind", "options"), TINY, ids=lambda value: getattr(value, "__name__", ""))
def test_all_methods_reach_the_end_with_declared_metrics_and_are_reproducible(kind, options):
    rows = run(kind(options, 0))
    assert {row.series for row in rows} == {*METHODS, OPTIMUM, "network"} and {row.metric for row in rows} == set(
        kind.metrics
    )
    for series in METHODS:
        x = [row.x for row in rows if (row.series, row.metric) == (series, "return")]
        assert len(x) == options.points and x[-1] == options.episodes
    assert rows == run(kind(options, 0)) != run(kind(options, 1))


@pytest.mark.parametrize(
    ("episodes", "points", "at"),
    [(99, 50, [*range(2, 99, 2), 99]), (10, 4, [3, 6, 9, 10]), (100, 5, [20, 40, 60, 80, 100]), (3, 50, [1, 2, 3])],
)
def test_a_curve_has_as_many_points_as_asked_for_at_most(episodes, points, at):
    rows = run(PRLandmarks(LandmarksOptions(episodes=episodes, points=points), 0))
    assert [row.x for row in rows if (row.series, row.metric) == (QD, "return")] == at and len(at) <= points


@pytest.mark.parametrize("before", [0, 1, 3, 7])
def test_saved_and_restored_anywhere_it_goes_on_bit_for_bit(before):
    """3 points a method: after 3 steps the second method is about to begin, after 7 it is the third's."""
    kind, options = TINY[0]
    whole, half = kind(options, 5), kind(options, 5)
    rows = run(whole)
    head = [row for _ in range(before) for row in half.advance()]
    restored = kind(options, 5)
    restored.load_state_dict(half.state_dict())
    assert head + run(restored) == rows


def test_a_finished_seed_can_be_restored():
    kind, options = TINY[1]
    finished, restored = kind(options, 0), kind(options, 0)
    run(finished)
    restored.load_state_dict(finished.state_dict())
    assert restored.done == restored.total


def test_every_method_learns_blocker_with_two_agents_and_no_greedy_return_beats_the_planner():
    """One blocker: optimum -13/6 on average over the 24 starts; -40 is never to enter."""
    rows = run(PRBlocker(BlockerOptions(blockers=1, episodes=10_000, points=4), 0))
    final = {row.series: row.value for row in rows if row.metric == "greedy"}
    assert final[OPTIMUM] == pytest.approx(-13 / 6)
    learnt = {series: value for series, value in final.items() if series not in (OPTIMUM, CONSTANT)}
    assert all(-8 < value <= final[OPTIMUM] + 1e-9 for value in learnt.values())


def test_findings_subtract_the_methods_seed_by_seed():
    kind, options = TINY[1]
    table = table_of([run(kind(options, seed)) for seed in (0, 1)])
    found = {finding.name: finding for finding in kind.findings(table, options)}
    final = {series: table[series, "greedy"][1][:, -1] for series in METHODS}
    gain = found[f"{ANNEALED} minus {ALONE}: final greedy return"]
    assert gain.values.tolist() == (final[ANNEALED] - final[ALONE]).tolist()
    assert found["network: lambda_2 of the mean Laplacian"].values.tolist() == pytest.approx([2, 2])  # complete, N = 2
    assert found[f"{OPTIMUM}: greedy return"].values == pytest.approx([-4 / 3, -4 / 3])
    assert all(finding.values.shape == (2,) for finding in found.values())


def test_the_control_has_the_step_size_of_reciprocity_and_the_constant_series_never_anneals():
    experiment = PRLandmarks(LandmarksOptions(), 0)
    made = {method: experiment._make(method) for method in METHODS}
    assert [made[m].rule.a for m in METHODS] == [0.3, 0.3, 0.3, 0.5, 0.3]
    assert made[SAME_STEP].rule.b == 0 and made[QD].rule.b == pytest.approx(0.4 / 2) and made[QD].rule.summed
    assert isinstance(made[CONSTANT], PolicyReciprocityQ)
    assert (made[ANNEALED].rule.decay, made[CONSTANT].rule.decay) == (0.5, 0.0)


def test_the_paper_gives_navigation_a_smaller_pull():
    assert (NavigationOptions().b, LandmarksOptions().b, BlockerOptions().b) == (0.3, 0.4, 0.4)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PRBlocker, BlockerOptions(blockers=3), "blocker with 4 agents needs tables of 163840000 entries"),
        (PRBlocker, BlockerOptions(hidden="gaps"), "no coordinate 'gaps'; did you mean 'gap'"),
        (PRLandmarks, LandmarksOptions(agents=26), "agents: expected a whole number from 1 to 25, got 26"),
        (PRLandmarks, LandmarksOptions(b=0.8), r"a \+ b"),
        (PRNavigation, NavigationOptions(epsilon=1.2), "epsilon: expected a number from 0 to 1, got 1.2"),
        (PRNavigation, NavigationOptions(episodes=0), "episodes: expected 1 or more, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(options, 0)


def test_the_list_of_experiments_knows_them():
    found = [experiment(name) for name in EXPERIMENTS if name in ("pr-blocker", "pr-landmarks", "pr-navigation")]
    assert found == [PRBlocker, PRLandmarks, PRNavigation]


def test_the_example_shows_the_optimum_the_methods_and_an_episode(capsys):
    classic_blocker.main(episodes=2_000)
    shown = capsys.readouterr().out
    assert "512 states (row x column x row_1 x column_1 x gap), best return -2.17" in shown
    assert "PR, gap hidden" in shown and "step 0\n01..\n....\n....\n.###\nstep 1" in shown
