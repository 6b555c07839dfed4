"""What the runner counts on, over every experiment of ``marl classic --list``; see ``experiments/base.py``."""

from __future__ import annotations

import dataclasses

import pytest
from experiment_tools import finished

from marl.classic.experiments import EXPERIMENTS, experiment
from marl.classic.storage import load_state, save_state
from marl.config import check_ranges, settings

SMALL = {
    "pr-digital": {"agents": 13, "states": 5, "steps": 400},
    "pr-theorem3": {"agents": 3, "states": 5, "sweeps": 60},
    "pr-blocker": {"blockers": 1, "episodes": 200, "points": 4},
    "pr-landmarks": {"agents": 2, "episodes": 60, "points": 3},
    "pr-navigation": {"agents": 2, "episodes": 60, "points": 3},
    "coop-lsvi": {"episodes": 64, "agents": 2},
    "coop-lsvi-heterogeneous": {"episodes": 64, "agents": 2},
    "coop-lsvi-multiagent": {"episodes": 200, "weights": 11},
    "distmt-lsvi": {"agents": (2, 1), "tasks": 2, "separation": 0.9, "c_sep": 0.8, "k1": 300, "k2": 100, "delta": 0.5},
    "subsample-demand": {"ks": (1, 2), "m": 3, "small": 2, "agents": 5, "runs": 5, "steps": 5},
    "subsample-queue": {"ks": (1, 2), "agents": 5, "capacity": 3, "small": 2, "runs": 5, "steps": 5, "settle": 5},
}
CLOCKS = ("seconds", "crowd_milliseconds")
"""Metrics that measure time."""


def curves(rows):
    """The rows that do not measure time."""
    return [row for row in rows if row.metric not in CLOCKS]


@pytest.fixture(scope="module", params=EXPERIMENTS)
def small(request):
    kind = experiment(request.param)
    options = kind.Options(**SMALL[request.param])
    run, rows, pieces = kind(options, 7), [], 0
    while run.done < run.total:
        before = run.done
        rows += run.advance()
        pieces += 1
        assert before <= run.done <= run.total and pieces < 10_000
    return kind, options, rows, pieces


def test_every_experiment_has_options_with_help_and_a_line_in_the_list(small):
    kind = small[0]
    assert dataclasses.is_dataclass(kind.Options) and kind.Options.__dataclass_params__.frozen
    assert all(setting.help.endswith(".") for setting in settings(kind.Options))
    check_ranges(kind.Options())
    assert kind.unit and kind.metrics


def test_every_row_is_of_a_metric_with_a_unit_and_every_panel_gets_rows(small):
    kind, _, rows, _ = small
    assert {row.metric for row in rows} <= set(kind.metrics)
    drawn = {name for name, metric in kind.metrics.items() if metric.kind != "none"}
    assert drawn <= {row.metric for row in rows}
    assert all(metric.unit and metric.x and metric.title for metric in kind.metrics.values())


def test_a_seed_gives_its_numbers_again_and_another_seed_others(small):
    kind, options, rows, _ = small

    assert curves(finished(kind(options, 7))) == curves(rows)
    assert curves(finished(kind(options, 8))) != curves(rows)


def test_saved_to_the_disk_at_several_moments_it_goes_on_bit_for_bit(small, tmp_path):
    """Moved to a new object, through a file, after every fifth of the pieces."""
    kind, options, rows, pieces = small
    run, found, every = kind(options, 7), [], max(pieces // 5, 1)
    for piece in range(pieces):
        found += run.advance()
        if piece % every == 0:
            save_state(tmp_path / "state.npz", run.state_dict())
            run = kind(options, 7)
            run.load_state_dict(load_state(tmp_path / "state.npz"))
    assert run.done == run.total
    assert curves(found) == curves(rows)
