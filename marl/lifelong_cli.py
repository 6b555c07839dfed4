"""``marl lifelong``, and what ``marl plot`` and ``marl evaluate`` print of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marl import config as cfg
from marl.parser import Parser, add_settings, free_options, print_json
from marl.runfolder import read_config
from marl.types import UserError

HELP = """\
Agents that learn one task after another, are not told which, and share what they learn through a hub.

  marl lifelong small/catch,small/gather,small/shoot --agents 3 --seeds 0 1 2
  marl lifelong small/catch,small/gather --agents 3 --isolated

The isolated agent runs too, as the measure of the others. The folder gets results.csv, findings.csv, lifelong.png and
tensorboard/. Stop it at any time; `marl resume FOLDER` goes on, to the same numbers.
"""


def lifelong(arguments: Sequence[str]) -> None:
    """The command ``marl lifelong``."""
    from marl.classic_cli import experiment_parser, start
    from marl.doctor import cores
    from marl.lifelong.options import LifelongOptions as Options

    positional = "TASKS", "environments with equal spaces, commas between them"
    parser = experiment_parser("lifelong", "FAMILY", positional, HELP)
    defaults = {setting.name: cfg.get(Options(), setting.name) for setting in cfg.settings(Options)}
    add_settings(parser, "lifelong agents", Options, defaults, without=["tasks", "env", "workers"], sweeps=False)
    asks = bool({"-h", "--help"} & {*arguments})
    if not arguments or arguments[0].startswith("-"):
        if not asks:
            raise UserError("expected: marl lifelong TASKS --agents N [options]")
        parser.print_help()
        return
    tasks = tuple(arguments[0].split(","))
    env, rest = _task_options(parser, tasks, _with_yes(arguments, ("--isolated", "--without-ewc")))
    if asks:
        parser.print_help()
        return
    given = vars(parser.parse(rest))
    env |= {name.removeprefix("env."): given.pop(name) for name in list(given) if name.startswith("env.")}
    workers = given.pop("workers")
    if (engine := given.get("engine", "local")) != "local":  # a resumed run has as many, wherever it goes on
        given["workers"], workers = workers or (cores() if engine == "processes" else None), None
    start("lifelong", tasks[0].partition("/")[0], given | {"tasks": tasks, "env": env}, workers, arguments)


def _with_yes(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words, with ``yes`` behind each of these flags that has no value."""
    bare = [word in flags and follower.startswith("-") for word, follower in zip(words, [*words[1:], "-"], strict=True)]
    return [f"{word}=yes" if alone else word for word, alone in zip(words, bare, strict=True)]


def _task_options(parser: Parser, tasks: Sequence[str], words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Let the parser know the options of the tasks' family; or, where it has none of its own, those given and the rest
    of the words."""
    from marl.envs import family_of

    options = family_of(tasks[0]).options
    if options is None:
        return free_options(words)
    add_settings(parser, f"{tasks[0].partition('/')[0]}/*", options, {}, "env.")
    return {}, list(words)


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
