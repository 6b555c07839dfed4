"""How fast ``marl.classic`` is: ``python benchmarks/classic.py [--json] [--only NAME ...]``.

Rows are as of ``speed.py``. rlberry lives in a virtual environment of its own: ``python benchmarks/venvs.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import ours_classic, rivals_classic
from benchmarks.duels import Duel, Row, main
from benchmarks.pair import Side, alone

TERMS: dict[str, Any] = {"episodes": 100, "beta": 1.0, "regulariser": 1.0}
"""Of the rows on RiverSwim. The rival's cost of an episode grows with their number; a hundred is in its favour."""

THREADS = min(2, os.cpu_count() or 1)
UPDATES_GOAL, SECONDS_GOAL, MEMORY_GOAL = 1e6, 120.0, 1.3


def rlberry() -> tuple[Any, Mapping[str, Any]]:
    """The rival with the same process as plain numbers; it is the same at every step, as the rival presumes."""
    table = ours_classic.riverswim().tabular
    terms = {"transition": table.transition[0].tolist(), "reward": table.reward[0].tolist()}
    return rivals_classic.rlberry_lsvi, {**terms, "horizon": ours_classic.RIVERSWIM_HORIZON, **TERMS}


DUELS: dict[str, Duel] = {
    "lsvi, 100 episodes : rlberry-scool's LSVI-UCB": Duel(
        (ours_classic.lsvi_fits, {**TERMS, "replan": 1.2}), rlberry(), "episodes", 50, venv="rlberry"
    ),
    "lsvi, the same, planned after every episode": Duel(
        (ours_classic.lsvi_fits, {**TERMS, "replan": 1.0}), rlberry(), "episodes", 50, venv="rlberry"
    ),
    "lsvi, 8 agents, an episode at T = 10000 : at 1000": Duel(
        (ours_classic.late_episodes, {"after": 10_000}),
        (ours_classic.late_episodes, {"after": 1_000}),
        "episode",
        1.1,
        cost=True,
    ),
    "subsample-q, k = 2, a sweep : over dictionaries": Duel(
        (ours_classic.demand_sweeps, {"k": 2}), (rivals_classic.dictionary_sweeps, {"k": 2}), "sweeps", None
    ),
}


def reciprocity() -> Row:
    """One process, one thread; the rate itself is the goal."""
    with Side(ours_classic.reciprocity_updates, 1, {"agents": 20}) as side:
        rate = alone(side, rounds=5, seconds=1.0)
    goal = f"ours >= {UPDATES_GOAL:g}"
    return Row(
        "tabular reciprocity, 20 agents", rate, None, "agent updates per second", None, goal, rate >= UPDATES_GOAL
    )


@cache
def solved(k: int) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(ours_classic.solve_demand, k, THREADS).result()


def seconds() -> Row:
    took = solved(5)[0]
    name = f"subsample-q, k = 5, solved on {THREADS} threads"
    return Row(name, took, None, "seconds", None, f"ours < {SECONDS_GOAL:g}", took < SECONDS_GOAL)


def memory() -> Row:
    times = solved(5)[1]
    name = "subsample-q, k = 5, peak memory"
    return Row(name, times, None, "times the table's bytes", None, f"ours <= {MEMORY_GOAL:g}", times <= MEMORY_GOAL)


MEASURES = {"tabular reciprocity, 20 agents": reciprocity, "subsample-q, k = 5, solved": seconds, "memory": memory}

if __name__ == "__main__":
    main(__doc__ or "", DUELS, MEASURES)
