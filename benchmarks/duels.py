"""Comparisons of two sides as rows of a report, and the command line that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks import venvs
from benchmarks.pair import ForeignSide, Missing, Setup, Side, alone, compare


class Row(NamedTuple):
    """One line of the report; ``ours``, ``rival``, ``ratio`` and ``holds`` are None where there is no answer.

    ``ratios`` are those of each pair of processes.
    """

    name: str
    ours: float | None
    rival: float | None
    unit: str
    ratio: float | None
    goal: str
    holds: bool | None
    ratios: tuple[float, ...] = ()


class Duel(NamedTuple):
    """Two sides and what their ratio should be.

    Attributes:
        unit: what a side is measured in, per second unless ``cost``.
        goal: what the ratio (ours / rival) is compared with; None: it is only reported.
        cost: report the time of one unit instead of the rate, ours / rival, to stay at or below ``goal``.
        venv: the virtual environment that the rival lives in (see ``venvs``); None: this one.
        both: our side lives there too.
    """

    ours: tuple[Setup, Mapping[str, Any]]
    rival: tuple[Setup, Mapping[str, Any]]
    unit: str
    goal: float | None
    cost: bool = False
    venv: str | None = None
    both: bool = False


def duel(name: str, terms: Duel, rounds: int, seconds: float, threads: int, pairs: int = 1) -> Row:
    """Run one comparison, with so many pairs of processes one after the other, and report their medians.

    Sides take turns in starting first; the ratio is that of ``balanced``.
    """
    answer = Row(name, None, None, unit(terms), None, goal(terms), None)
    ours = partial(living, terms.ours, terms.venv if terms.both else None, threads)
    rival = partial(living, terms.rival, terms.venv, threads)
    found = []
    try:
        for number in range(pairs):
            with ExitStack() as stack:
                if number % 2:  # of two equal sides the one that starts first is the slower one, see ``balanced``
                    rival_side, our_side = stack.enter_context(rival()), stack.enter_context(ours())
                else:
                    our_side = stack.enter_context(ours())
                    try:
                        rival_side = stack.enter_context(rival())
                    except Missing as missing:
                        print(f"{name}: {missing} is not installed: make bench", file=sys.stderr)
                        return answer._replace(ours=shown(alone(our_side, rounds, seconds), terms.cost))
                found.append(compare(our_side, rival_side, rounds, seconds))
    except Missing as missing:
        print(f"{name}: {missing} is not installed: make bench", file=sys.stderr)
        return answer
    ratios = tuple(1 / pair.ratio if terms.cost else pair.ratio for pair in found)
    ratio = statistics.median(balanced(ratios))
    return answer._replace(
        ours=shown(statistics.median(pair.ours for pair in found), terms.cost),
        rival=shown(statistics.median(pair.rival for pair in found), terms.cost),
        ratio=ratio,
        holds=holds(terms, ratio),
        ratios=ratios,
    )


def balanced(ratios: Sequence[float]) -> list[float]:
    """The geometric mean of each two neighbouring pairs of processes, of which either side has started one.

    Of two equal sides the one that starts first has been up to 3 % slower, so that ratios come in two heaps, and the
    median of all is decided by the outermost of each. One pair alone stays as it is.
    """
    return [math.sqrt(one * other) for one, other in pairwise(ratios)] or list(ratios)


def living(side: tuple[Setup, Mapping[str, Any]], venv: str | None, threads: int) -> Side:
    """A side, ready, in this Python or in that of another environment; raises ``Missing``."""
    if venv is None:
        return Side(side[0], threads, side[1])
    return ForeignSide(side[0], threads, side[1], venvs.python(venv))


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


def table(rows: list[Row]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"

    words = {True: "holds", False: "missed", None: "reported"}
    lines = ["| what | ours | rival | unit | ratio | goal | |", "|---|---:|---:|---|---:|---|---|"]
    for row in rows:
        span = f" ({number(min(row.ratios))} to {number(max(row.ratios))})" if len(row.ratios) > 1 else ""
        cells = [row.name, number(row.ours), number(row.rival), row.unit, number(row.ratio) + span, row.goal]
        cells.append("not installed" if row.holds is None and row.ratio is None else words[row.holds])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(about: str, duels: Mapping[str, Duel], measures: Mapping[str, Callable[[], Row]]) -> None:
    """Run the rows that the command line names, and print them as a table or as JSON.

    Args:
        about: what ``--help`` says.
        duels: rows with a rival.
        measures: rows without one.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON instead of a table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only rows whose name contains one of these words")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of two turns of each side (default 4)")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of processes for a row with a rival (default 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on either side (default 1)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.pairs) < 1:
        parser.error(f"--rounds, --pairs: expected 1 or more, got {arguments.rounds}, {arguments.pairs}")
    names = [*duels, *measures]
    chosen = [name for name in names if not arguments.only or any(word in name for word in arguments.only)]
    if not chosen:
        parser.error(f"no row contains {' or '.join(arguments.only)}; rows: {'; '.join(names)}")
    rows = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr)
        if name in duels:
            told = (arguments.rounds, arguments.seconds, arguments.threads, arguments.pairs)
            rows.append(duel(name, duels[name], *told))
        else:
            rows.append(measures[name]())
    print(json.dumps([row._asdict() for row in rows], indent=1) if arguments.json else table(rows))
