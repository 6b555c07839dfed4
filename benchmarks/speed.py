"""How fast this project is beside others: ``python benchmarks/speed.py [--json] [--only NAME ...]``.

Each row runs both sides in processes of their own that take turns, and reports the median of the turns' ratios. The
rivals come with ``pip install -e '.[bench]'`` or, those that need a virtual environment of their own, with ``python
benchmarks/venvs.py``; a rival that is not installed leaves its row without an answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import ours, rivals, rivals_benchmarl, rivals_jaxmarl, rivals_torchrl, venvs
from benchmarks.pair import ForeignSide, Missing, Setup, Side, alone, compare

SPREAD, HOPPER = "mpe/simple_spread_v3", "mujoco/Hopper-v5"
WITH, WITHOUT = {"reciprocity.kappa": 0.5}, {"reciprocity.kappa": 0.0}


class Row(NamedTuple):
    """One line of the report; ``ours``, ``rival``, ``ratio`` and ``holds`` are None where there is no answer."""

    name: str
    ours: float | None
    rival: float | None
    unit: str
    ratio: float | None
    goal: str
    holds: bool | None


class Duel(NamedTuple):
    """Two sides and what their ratio should be.

    Attributes:
        unit: what a side is measured in, per second unless ``cost``.
        goal: what the ratio (ours / rival) is compared with; None: it is only reported.
        cost: report the time of one unit instead of the rate, ours / rival, to stay at or below ``goal``.
        venv: the virtual environment that the rival lives in (``venvs.PACKAGES``); None: this one.
    """

    ours: tuple[Setup, Mapping[str, Any]]
    rival: tuple[Setup, Mapping[str, Any]]
    unit: str
    goal: float | None
    cost: bool = False
    venv: str | None = None


def training(**settings: Any) -> tuple[Setup, Mapping[str, Any]]:
    return ours.training_steps, settings


DUELS: dict[str, Duel] = {
    "mpe, 1024 copies : mpe2": Duel(
        (ours.mpe_steps, {"copies": 1024}), (rivals.mpe2_steps, {}), "environment steps", 300
    ),
    "mpe, 1024 copies : JaxMARL, a call a step": Duel(
        (ours.mpe_steps, {"copies": 1024}),
        (rivals.jaxmarl_steps, {"copies": 1024, "unroll": False}),
        "environment steps",
        1,
    ),
    "mpe, 1024 copies : JaxMARL, 25 steps a call": Duel(
        (ours.mpe_steps, {"copies": 1024}),
        (rivals.jaxmarl_steps, {"copies": 1024, "unroll": True}),
        "environment steps",
        1,
    ),
    "maddpg, N = 3 : loop of networks": Duel(
        (ours.maddpg_updates, {"agents": 3}), (rivals.loop_maddpg_updates, {"agents": 3}), "updates", 2
    ),
    "maddpg, N = 6 : loop of networks": Duel(
        (ours.maddpg_updates, {"agents": 6}), (rivals.loop_maddpg_updates, {"agents": 6}), "updates", 2
    ),
    "td3, one learner : stable-baselines3": Duel(
        (ours.td3_updates, {"learners": 1}), (rivals.sb3_td3_updates, {}), "learner updates", 1
    ),
    "td3, four learners : stable-baselines3": Duel(
        (ours.td3_updates, {"learners": 4}), (rivals.sb3_td3_updates, {}), "learner updates", 1
    ),
    "td3, four learners : one learner": Duel(
        (ours.td3_updates, {"learners": 4}), (ours.td3_updates, {"learners": 1}), "learner updates", 1
    ),
    "reciprocity, maddpg on spread : without": Duel(
        training(algorithm="maddpg", environment=SPREAD, **WITH),
        training(algorithm="maddpg", environment=SPREAD, **WITHOUT),
        "training step",
        1.15,
        cost=True,
    ),
    "reciprocity, td3 on 3 Hoppers : without": Duel(
        training(algorithm="td3", environment=HOPPER, agents=3, **WITH),
        training(algorithm="td3", environment=HOPPER, agents=3, **WITHOUT),
        "training step",
        1.15,
        cost=True,
    ),
    "population of 8, maddpg on spread : of 1": Duel(
        training(algorithm="maddpg", environment=SPREAD, members=8),
        training(algorithm="maddpg", environment=SPREAD, members=1),
        "training step",
        5,
        cost=True,
    ),
    "mappo on spread : TorchRL's on VMAS": Duel(
        (ours.mappo_steps, {}), (rivals_torchrl.mappo_steps, {}), "environment steps", 3, venv="torchrl"
    ),
    "mappo on spread : BenchMARL's on VMAS": Duel(
        (ours.mappo_steps, {}), (rivals_benchmarl.mappo_steps, {}), "environment steps", 3, venv="benchmarl"
    ),
    "mappo on spread : in JAX on JaxMARL's": Duel(
        (ours.mappo_steps, {}), (rivals_jaxmarl.mappo_steps, {}), "environment steps", None
    ),
    "qmix on smax 3s_vs_5z : in JAX": Duel(
        (ours.qmix_updates, {}), (rivals_jaxmarl.qmix_updates, {}), "training steps", None
    ),
    "gru, N = 3, 100 steps : loop of nn.GRU": Duel((ours.gru_unrolls, {}), (rivals.loop_gru_unrolls, {}), "passes", 1),
}
MEMORY = "replay, a million Hopper transitions"
MEMORY_GOAL = 80.0


def duel(name: str, rounds: int, seconds: float, threads: int) -> Row:
    """Run one comparison."""
    terms = DUELS[name]
    answer = Row(name, None, None, unit(terms), None, goal(terms), None)
    try:
        with Side(terms.ours[0], threads, terms.ours[1]) as our_side:
            try:
                with opponent(terms, threads) as rival_side:
                    pair = compare(our_side, rival_side, rounds, seconds)
            except Missing as missing:
                print(f"{name}: {missing} is not installed: make bench", file=sys.stderr)
                return answer._replace(ours=shown(alone(our_side, rounds, seconds), terms.cost))
    except Missing as missing:
        print(f"{name}: {missing} is not installed: make bench", file=sys.stderr)
        return answer
    ratio = 1 / pair.ratio if terms.cost else pair.ratio
    return answer._replace(
        ours=shown(pair.ours, terms.cost), rival=shown(pair.rival, terms.cost), ratio=ratio, holds=holds(terms, ratio)
    )


def opponent(terms: Duel, threads: int) -> Side:
    """The rival's side, ready; raises ``Missing``."""
    if terms.venv is None:
        return Side(terms.rival[0], threads, terms.rival[1])
    return ForeignSide(terms.rival[0], threads, terms.rival[1], venvs.python(terms.venv))


def holds(terms: Duel, ratio: float) -> bool | None:
    """Whether the goal is met; None where there is none."""
    if terms.goal is None:
        return None
    return ratio <= terms.goal if terms.cost else ratio >= terms.goal


def shown(rate: float, cost: bool) -> float:
    """A rate as reported: itself, or the milliseconds that one unit takes."""
    return 1000 / rate if cost else rate


def unit(terms: Duel) -> str:
    return f"ms per {terms.unit}" if terms.cost else f"{terms.unit} per second"


def goal(terms: Duel) -> str:
    return "none" if terms.goal is None else f"ratio {'<=' if terms.cost else '>='} {terms.goal:g}"


def memory() -> Row:
    """A fresh process fills a replay; there is no rival but the goal itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        used = pool.submit(ours.replay_megabytes).result()
    return Row(MEMORY, used, None, "MB", None, f"ours < {MEMORY_GOAL:g}", used < MEMORY_GOAL)


def table(rows: list[Row]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"

    words = {True: "holds", False: "missed", None: "reported"}
    lines = ["| what | ours | rival | unit | ratio | goal | |", "|---|---:|---:|---|---:|---|---|"]
    for row in rows:
        cells = [row.name, number(row.ours), number(row.rival), row.unit, number(row.ratio), row.goal]
        cells.append("not installed" if row.holds is None and row.ratio is None else words[row.holds])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON instead of a table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only rows whose name contains one of these words")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on either side (default 1)")
    arguments = parser.parse_args()
    jobs: dict[str, Callable[[], Row]] = {
        name: (lambda name=name: duel(name, arguments.rounds, arguments.seconds, arguments.threads))  # type: ignore[misc]
        for name in DUELS
    }
    jobs[MEMORY] = memory
    chosen = [name for name in jobs if not arguments.only or any(word in name for word in arguments.only)]
    if not chosen:
        parser.error(f"no row contains {' or '.join(arguments.only)}; rows: {'; '.join(jobs)}")
    rows = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr)
        rows.append(jobs[name]())
    print(json.dumps([row._asdict() for row in rows], indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
