"""How fast ``marl lifelong`` is: ``python benchmarks/lifelong.py [--json] [--only NAME ...]``.

Rows are as of ``speed.py``. stable-baselines3 lives in a virtual environment of its own: ``python
benchmarks/venvs.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import ours_lifelong, rivals_lifelong
from benchmarks.duels import Duel, Row, main

TASKS, MILLISECONDS = 1000, 10.0
GAMES, STEPS, TIMES = ("Krull", "Alien", "Kangaroo", "Frostbite"), 25_000, 4.0
"""As many steps as the 100 000 frames of a task."""


def rival(copies: int, ours: int = 0, theirs: int = 0) -> Duel:
    """One agent against stable-baselines3's DQN, whose settings ``AtariTerms`` makes equal; with how many processes."""
    terms = {"copies": copies}
    return Duel(
        (ours_lifelong.atari_frames, {**terms, "workers": ours}),
        (rivals_lifelong.sb3_frames, {**terms, "workers": theirs}),
        "frames",
        1.5,
        venv="sb3",
    )


def stacked(copies: int, emulator: bool) -> Duel:
    """Eight agents against one."""
    terms = {"copies": copies, "emulator": emulator}
    return Duel(
        (ours_lifelong.atari_steps, {"agents": 8, **terms}),
        (ours_lifelong.atari_steps, {"agents": 1, **terms}),
        "update",
        None if emulator else 4,
        cost=True,
    )


DUELS = {
    "atari ram, one copy : stable-baselines3's DQN": rival(1),
    "atari ram, 8 copies : stable-baselines3's DQN": rival(8),
    "atari ram, 8 copies in 2 processes : stable-baselines3's DQN": rival(8, ours=2),
    "atari ram, 8 copies in 2 processes : stable-baselines3's DQN, 8 processes": rival(8, ours=2, theirs=8),
    "atari ram, 16 copies in a process of their own : stable-baselines3's DQN": rival(16, ours=1),
    "atari ram, 16 copies in a process of their own : stable-baselines3's DQN, 16 processes": rival(16, 1, theirs=16),
    "8 agents, one copy each : one agent": stacked(1, emulator=False),
    "8 agents, 8 copies each : one agent": stacked(8, emulator=False),
    "8 agents, one copy each, emulator included : one agent": stacked(1, emulator=True),
}


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@cache
def hub() -> tuple[float, float, float]:
    return alone(ours_lifelong.hub_milliseconds, TASKS)


def query(name: str, place: int) -> Row:
    took = sum(hub()[:2]) if place == 0 else hub()[place]
    return Row(name, took, None, "ms", None, f"ours < {MILLISECONDS:g}", took < MILLISECONDS)


@cache
def compression() -> dict[str, float]:
    return alone(ours_lifelong.compression, GAMES, STEPS)


def smaller(name: str, game: str) -> Row:
    times = compression()[game]
    return Row(name, times, None, "times smaller", None, f"ours >= {TIMES:g}", times >= TIMES)


QUERIES = {
    f"hub of {TASKS} tasks, opened and asked": 0,
    f"hub of {TASKS} tasks, first query": 1,
    f"hub of {TASKS} tasks, slowest of 100 more": 2,
}
REPLAYS = {f"replay of {game}'s memory, {STEPS} steps": game for game in GAMES}
MEASURES: dict[str, Callable[[], Row]] = {
    **{name: partial(query, name, place) for name, place in QUERIES.items()},
    **{name: partial(smaller, name, game) for name, game in REPLAYS.items()},
}

if __name__ == "__main__":
    main(__doc__ or "", DUELS, MEASURES)
