"""``marl plot`` and ``marl evaluate`` of runs of ``marl lifelong``: what they print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from marl.parser import print_json
from marl.runfolder import read_config
from marl.types import UserError


def is_lifelong(folder: Path) -> bool:
    """Whether it holds a run of ``marl lifelong``; raises ``UserError`` where it holds none at all."""
    return read_config(folder).get("experiment") == "lifelong"


def all_lifelong(folders: Sequence[Path]) -> bool:
    """Whether all of them hold such runs; raises ``UserError`` where some do and some do not."""
    kinds = [is_lifelong(folder) for folder in folders]
    if any(kinds) != all(kinds):
        one, other = folders[kinds.index(True)], folders[kinds.index(False)]
        raise UserError(f"{one} is a run of marl lifelong, {other} is not: plot them apart")
    return all(kinds)


def plot(folders: Sequence[Path], out: Path, as_json: bool) -> None:
    """Draw the runs and print the numbers that are drawn."""
    from marl.lifelong.figures import plot as draw

    figures = draw(folders, out)
    if as_json:
        print_json({"picture": str(figures.path), "groups": [row._asdict() for row in figures.table]})
        return
    for row in figures.table:
        interval = "" if math.isnan(row.low) else f" [{row.low:.4g}, {row.high:.4g}]"
        print(f"{row.group}: {row.quantity}: {row.estimate:.4g}{interval} {row.unit}, seeds: {row.n}")
    print(f"picture: {figures.path}")


def evaluate(folder: Path, episodes: int, video: Path | None, task: str | None, as_json: bool, progress: bool) -> None:
    """Let the agents play, and print what each earned on each task."""
    from marl.evaluation import NotFilmed
    from marl.lifelong.evaluate import evaluate as play

    failure = None
    try:
        result = play(folder, episodes, video, task, progress)
    except NotFilmed as error:
        result, failure = error.result, error
    if as_json:
        print_json({"run": str(folder), "episodes": episodes, "agents": [score._asdict() for score in result.scores]})
    else:
        print("\n".join(result.lines()))
    if failure is not None:
        raise failure
    if video is not None and not as_json:
        print(f"video: {video} ({result.filmed})")
