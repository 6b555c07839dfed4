import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from marl.classic.experiments import experiment
from marl.classic.experiments.subsample_queue import QueueOptions, SubsampleQueue
from marl.types import UserError

TINY = QueueOptions(ks=(1, 2), agents=8, capacity=5, runs=20, steps=20, settle=200, small=3, small_capacity=3)


def finished(run):
    rows = []
    while run.done < run.total:
        rows += run.advance()
    return rows


def test_a_small_run_measures_what_it_promises():
    run = experiment("subsample-queue")(TINY, 0)
    rows = finished(run)
    assert run.done == run.total == 6 and run.advance() == []
    assert {row.metric for row in rows} == set(SubsampleQueue.metrics)
    found = {(row.series, row.metric, row.x): row.value for row in rows}
    for setting in ("light", "heavy"):
        assert found[setting, "gap", 1] > found[setting, "gap", 2] > 0
        # one queue looked at is random dispatching, and all rules have equal luck
        assert found["sub-sampled", f"{setting}_return", 1] == found["random", f"{setting}_return", 1]
    assert found["sub-sampled", "states", 2] == 36  # lengths 0..5: 6 x 6
    assert found["random", "heavy_length", 1] == found["random", "heavy_length", 2]


def test_a_run_saved_between_any_two_steps_goes_on_with_the_same_rows():
    whole = finished(SubsampleQueue(TINY, 3))
    run, rows = SubsampleQueue(TINY, 3), []
    while run.done < run.total:
        rows += run.advance()
        state = copy.deepcopy(run.state_dict())
        run = SubsampleQueue(TINY, 3)
        run.load_state_dict(state)
    assert rows == whole


def test_a_table_half_solved_is_saved_too():
    first, second = SubsampleQueue(TINY, 0), SubsampleQueue(TINY, 0)
    first.advance()
    table = first._new_table("light", 1)
    first._table = table.fit(4)
    state = first.state_dict()
    json.dumps(state, default=lambda value: value.tolist() if isinstance(value, np.ndarray) else None)
    second.load_state_dict(state)
    assert second._table is not None and second._table.sweeps == 4
    assert finished(second) == finished(first)


def test_seeds_differ_where_there_is_chance_and_nowhere_else():
    first, second = ({(r.series, r.metric, r.x): r.value for r in finished(SubsampleQueue(TINY, s))} for s in (0, 1))
    assert first["random", "light_return", 1] != second["random", "light_return", 1]
    assert first["light", "gap", 1] == second["light", "gap", 1]


def test_the_findings_name_gaps_and_lengths():
    table = {}
    runs = [finished(SubsampleQueue(TINY, seed)) for seed in (0, 1)]
    for series, metric in {(row.series, row.metric) for row in runs[0]}:
        points = [[(r.x, r.value) for r in rows if (r.series, r.metric) == (series, metric)] for rows in runs]
        table[series, metric] = (np.array(points)[0, :, 0], np.array(points)[:, :, 1])
    found = {finding.name: finding for finding in SubsampleQueue.findings(table, TINY)}
    assert "light: worst gap among few, k = 2" in found
    assert "heavy: return behind the shortest queue, k = 1" in found
    assert "heavy: jobs in a queue, shortest queue" in found
    assert found["heavy: jobs in a queue, sub-sampled, k = 2"].values.shape == (2,)


def test_nothing_is_measured_that_is_switched_off():
    # nor asked for: two queues cannot be busy for .3 of the time with a job in every step, four can
    options = QueueOptions(ks=(1,), agents=4, load=0.3, capacity=3, runs=5, steps=5, settle=0, small=0)
    metrics = {row.metric for row in finished(SubsampleQueue(options, 0))}
    assert metrics == {"behind", "light_return", "heavy_return", "states", "sweeps"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": ()}, "ks: expected different numbers from 1 on, got none"),
        ({"ks": (1, 9)}, "k = 9 of n = 8 local agents: expected 1 <= k <= n; the nearest is 8"),
        ({"ks": (2, 3, 2)}, "ks: expected different numbers from 1 on, got 2,3,2"),
        ({"load": 1.5}, "load = 1.5: expected a number above 0, less than 1"),
        ({"p": 0.0}, "p = 0.0: expected a chance above 0, 1 at most"),
        ({"capacity": 0}, "c = 0: expected 1 or more"),
        (
            {"ks": (6,), "capacity": 30},
            "k = 6 at c = 30 needs 1.006e+07 states, allowed are 2e+06; the largest k that fits is 5",
        ),
    ],
)
def test_options_that_make_no_sense_are_one_clear_line(changes, message):
    with pytest.raises(UserError) as error:
        SubsampleQueue(QueueOptions(**{**vars(TINY), **changes}), 0)
    assert str(error.value) == message


def test_the_example_shows_gaps_that_fall(capsys):
    path = Path(__file__).parents[2] / "examples" / "classic_queueing.py"
    spec = importlib.util.spec_from_file_location("classic_queueing", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(steps=500, ks=(1, 2))
    assert "join-shortest-queue" in capsys.readouterr().out
