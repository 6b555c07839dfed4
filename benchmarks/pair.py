"""Timing two programs against each other: one process a side, taking turns, so that a busy machine slows both."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeAlias

import torch

Work: TypeAlias = Callable[[], float]
"""Does one small piece of work and says how many units it was."""

Setup: TypeAlias = Callable[..., Work]
"""Prepares a side in its own process; raises ``ImportError`` where the package it needs is not installed."""


class Missing(Exception):
    """A side cannot run since a package is not installed."""


class Pair(NamedTuple):
    """What alternating turns measured, in units per second: medians of each side, and the median of their ratios."""

    ours: float
    rival: float
    ratio: float


class Side:
    """One side in a process of its own, ready to take turns.

    Args:
        setup: a function of a module, so that a new process can import it.
        threads: of torch; a side that does not use torch chooses for itself.
        arguments: for ``setup``.

    Raises ``Missing``, and ``RuntimeError`` with the child's traceback for any other fault.
    """

    def __init__(self, setup: Setup, threads: int, arguments: Mapping[str, object]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # no daemon: a side may start processes
        self.process = context.Process(target=_serve, args=(theirs, setup, threads, dict(arguments)))
        self.process.start()
        theirs.close()
        self._answer()

    def turn(self, seconds: float) -> float:
        """One piece of work that is not timed, then work for about that long; units per second."""
        self.connection.send(seconds)
        return self._answer()

    def _answer(self) -> float:
        kind, value = self.connection.recv()
        if kind == "missing":
            raise Missing(value)
        if kind == "error":
            raise RuntimeError(value)
        return float(value)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()


class ForeignSide(Side):
    """One side run by the Python of another virtual environment.

    Args:
        setup, threads, arguments: as of ``Side``; the arguments go there as JSON.
        python: of an environment that has torch and what ``setup`` imports.
    """

    def __init__(self, setup: Setup, threads: int, arguments: Mapping[str, object], python: Path) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        told = json.dumps([theirs.fileno(), setup.__module__, setup.__qualname__, threads, dict(arguments)])
        self.child = subprocess.Popen(
            [python, "-m", __name__, told], cwd=Path(__file__).parent.parent, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._answer()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(5)
        self.child.kill()
        self.child.wait()


def compare(ours: Side, rival: Side, rounds: int, seconds: float) -> Pair:
    """``rounds`` of two turns of each side: ours, rival, rival, ours; one turn before them warms up.

    In each round both sides have one turn after the other's, which is slower, and one after their own.
    """
    rival.turn(seconds), ours.turn(seconds)
    rates = []
    for _ in range(rounds):
        first, theirs = ours.turn(seconds), rival.turn(seconds)
        again, last = rival.turn(seconds), ours.turn(seconds)
        rates.append(((first + last) / 2, (theirs + again) / 2))
    return Pair(
        ours=statistics.median(a for a, _ in rates),
        rival=statistics.median(b for _, b in rates),
        ratio=statistics.median(a / b for a, b in rates),
    )


def alone(ours: Side, rounds: int, seconds: float) -> float:
    """The median rate of a side without a rival, after one turn to warm up."""
    ours.turn(seconds)
    return statistics.median(ours.turn(seconds) for _ in range(rounds))


def _serve(connection: Connection, setup: Setup, threads: int, arguments: dict[str, object]) -> None:
    os.dup2(2, 1)  # what libraries print on import must not mix with the report
    torch.set_num_threads(threads)
    try:
        work = setup(**arguments)
        work()
        connection.send(("ready", 0.0))
        while True:
            seconds = connection.recv()
            work()  # not timed: it finds the caches as the other side has left them
            units, start = 0.0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                units += work()
            connection.send(("rate", units / spent))
    except EOFError:  # the other end has closed: nothing more to do
        return
    except ImportError as error:
        connection.send(("missing", error.name or str(error)))
    except Exception:
        connection.send(("error", traceback.format_exc()))


def main() -> None:
    """The other end of ``ForeignSide``."""
    number, module, name, threads, arguments = json.loads(sys.argv[1])
    _serve(Connection(number), getattr(importlib.import_module(module), name), threads, arguments)


if __name__ == "__main__":
    main()
