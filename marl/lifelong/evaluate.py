"""Plays with the final networks of a lifelong run: what every agent earns on every task, and a film."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marl.classic.results import RESULTS, SEEDS, read_results, read_run
from marl.config import suggestion
from marl.evaluation import Film, NotFilmed, Progress
from marl.lifelong.findings import SHARED, size_of, teams
from marl.lifelong.options import LifelongOptions
from marl.lifelong.play import mean_returns
from marl.lifelong.tasks import Tasks
from marl.lifelong.weights import load_agents, team_folder
from marl.stats import t_interval
from marl.streams import derive
from marl.types import UserError

FILMED = 3
"""Episodes of each task in the film, at most."""


class Score(NamedTuple):
    """What one agent earns on one task: the mean over episodes of the sum of rewards."""

    team: str
    seed: int
    agent: int
    task: str
    mean: float


class Evaluation(NamedTuple):
    """What ``evaluate`` found.

    Attributes:
        scores: of every team, seed, agent and task.
        filmed: what the film shows; empty: there is none.
    """

    scores: list[Score]
    filmed: str

    def lines(self) -> list[str]:
        """A table: a column for each task, a line for each agent, then for each team its mean over agents and seeds."""
        tasks = list(dict.fromkeys(score.task for score in self.scores))
        table = {(s.team, s.seed, s.agent, s.task): s.mean for s in self.scores}
        rows = [
            [f"{team}, seed {seed}, agent {agent}", *(f"{table[team, seed, agent, task]:.2f}" for task in tasks)]
            for team, seed, agent in dict.fromkeys(key[:3] for key in table)
        ]
        for team in dict.fromkeys(score.team for score in self.scores):
            rows.append([f"{team}, mean", *(self._mean(team, task) for task in tasks)])
        return _aligned([["return per episode", *tasks], *rows])

    def _mean(self, team: str, task: str) -> str:
        """Over agents, then over seeds, with Student's 95 % interval over seeds."""
        seeds: dict[int, list[float]] = {}
        for score in self.scores:
            if (score.team, score.task) == (team, task):
                seeds.setdefault(score.seed, []).append(score.mean)
        values = np.array([np.mean(each) for each in seeds.values()])
        low, high = t_interval(values)
        return f"{values.mean():.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def evaluate(
    folder: Path, episodes: int, video: Path | None = None, task: str | None = None, progress: bool = False
) -> Evaluation:
    """Let all agents of a finished run play, without exploration; the first episodes are those of the run's own.

    Args:
        folder: the run's.
        episodes: of each agent on each task.
        video: where to write an MP4 of agent 0 of the first seed, of the team with a hub where there is one: some
            episodes of each task that it was given, in that order; None: nowhere.
        task: play and film this one alone; None: all of the run's.
        progress: show a bar on stderr.

    Raises:
        NotFilmed: a film that cannot be written; its ``result`` is what else is returned.
        UserError: no finished run of ``marl lifelong``, no such task, or fewer than one episode.
    """
    run = read_run(folder)
    options: LifelongOptions = run.options
    if run.name != "lifelong" or not (folder / RESULTS).exists():
        raise UserError(f"{folder} is no finished run of marl lifelong: marl resume {folder}")
    if episodes < 1:
        raise UserError(f"episodes: expected 1 or more, got {episodes}")
    if task is not None and task not in options.tasks:
        raise UserError(f"task {task!r} is none of this run{suggestion(task, options.tasks)}")
    tasks = Tasks.of(options.tasks, options.env)
    played = options.tasks if task is None else (task,)
    star = (SHARED if SHARED in teams(options) else teams(options)[0], run.seeds[0])
    scores: list[Score] = []
    films: dict[str, Film] = {}
    agents = sum(size_of(team, options) for team in teams(options)) * len(run.seeds)
    with contextlib.closing(Progress(agents * len(played) * episodes, progress)) as bar:
        for team, seed in itertools.product(teams(options), run.seeds):
            players = load_agents(team_folder(folder / SEEDS / str(seed), team), tasks.spec, options.dqn)
            seeds = [derive(seed, "agent", i) for i in range(len(players.critic.flat.data))]
            for name in played:
                film = Film(copies=min(episodes, FILMED)) if video is not None and (team, seed) == star else None
                means = mean_returns(players, [name] * len(seeds), seeds, episodes, tasks.env, bar.beside(film))
                scores += [Score(team, seed, i, name, mean) for i, mean in enumerate(means.tolist())]
                if film is not None:
                    films[name] = film
    if video is None:
        return Evaluation(scores, "")
    shown = [name for name in _given(folder, *star, options) if name in films] if task is None else [task]
    try:
        _write([films[name] for name in shown], video)
    except UserError as error:
        raise NotFilmed(str(error), Evaluation(scores, "")) from error
    return Evaluation(scores, f"{star[0]}, seed {star[1]}, agent 0: {', '.join(shown)}")


def _given(folder: Path, team: str, seed: int, options: LifelongOptions) -> list[str]:
    """The tasks that agent 0 was given, in that order, each once."""
    _, numbers = read_results(folder)[f"{team}, agent 0", "task"][seed]
    return list(dict.fromkeys(options.tasks[int(number)] for number in numbers))


def _write(films: Sequence[Film], video: Path) -> None:
    """One film after the other; smaller pictures in a black frame."""
    episodes = [episode for film in films for episode in film.frames]
    height, width = (max(episode[0].shape[side] for episode in episodes) for side in (0, 1))
    whole = Film(copies=0)
    whole.frames = [[_framed(picture, height, width) for picture in episode] for episode in episodes]
    whole.write(video)


def _framed(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    up, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    down, right = height - picture.shape[0] - up, width - picture.shape[1] - left
    return np.pad(picture, ((up, down), (left, right), (0, 0)))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column from the left, the others from the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
