"""``marl plot`` of lifelong runs: Figures 1a, 1b and 2 of the DistMT paper, and what sharing costs.

Runs that differ in the number of agents alone are one picture. ``docs/lifelong/figures.md`` says what each panel shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from marl.classic.experiments.base import Array, Curves, Table
from marl.classic.results import RESULTS, read_results, read_run, shared
from marl.drawing import COLOURS, new_figure, save, tidy, write_caption
from marl.lifelong.findings import (
    FORGETFUL,
    ISOLATED,
    METRICS,
    SHARED,
    TRANSFER,
    WHOLE,
    Reference,
    forgetting_of,
    reward_of,
    times_of,
    transfer_of,
    whole_time_of,
)
from marl.lifelong.measures import Measure, Row
from marl.lifelong.metrics import LEVELS, defined_mean
from marl.lifelong.options import LifelongOptions
from marl.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = 0.88
"""The paper's AR of N agents, divided by N."""

FREE = ("agents", "without_ewc", "hub_bytes", "engine", "address", "workers", "env_workers")
"""Options in which the runs of one picture may differ: the isolated agent's numbers do not depend on them."""

ALONE, TOGETHER, CLAIM, PLAIN = "0.25", COLOURS[0], COLOURS[1], COLOURS[4]
"""Colours: the isolated agent, teams with a hub, the paper's line, whoever has no EWC."""


class Figures(NamedTuple):
    """What ``plot`` made: the picture's path and the numbers in it."""

    path: Path
    table: list[Row]


class Team(NamedTuple):
    """Some agents of one run.

    Attributes:
        label: the isolated agent, or how many agents share.
        agents: N.
        name: in the run's table.
        curves: the run's.
        table: of those that all its seeds share.
        options: the run's.
    """

    label: str
    agents: int
    name: str
    curves: Curves
    table: Table
    options: LifelongOptions

    @property
    def alone(self) -> bool:
        return self.name.startswith(ISOLATED)

    @property
    def colour(self) -> str:
        return ALONE if self.alone else TOGETHER


class Points(NamedTuple):
    """A number of several teams, in the order of N."""

    teams: list[Team]
    measures: list[Measure]

    @classmethod
    def of(cls, teams: Sequence[Team], measure: Callable[[Team], Measure | None]) -> Points:
        """Teams that have none are left out."""
        found = [(team, value) for team in teams if (value := measure(team)) is not None]
        return cls([team for team, _ in found], [value for _, value in found])

    def curve(self) -> tuple[Array, Array]:
        """N ``[K]`` and values ``[K, S]``; the isolated agent stands for N = 1 where no team has one agent."""
        lone = any(team.agents == 1 and not team.alone for team in self.teams)
        kept = [i for i, team in enumerate(self.teams) if not (team.alone and lone)]
        return (
            np.array([self.teams[i].agents for i in kept], float),
            np.array([self.measures[i].values for i in kept]),
        )


def plot(folders: Sequence[Path], out: Path) -> Figures:
    """Draw agent reward, agent time, forgetting, frames and traffic against the number of agents.

    Args:
        folders: finished runs of ``marl lifelong`` with a hub, that differ in ``agents`` (and ``FREE``) alone.
        out: the PNG.

    Raises:
        UserError: a run that is not finished, has no hub, or differs in more; a picture that cannot be written.
    """
    teams, reference = _read(list(dict.fromkeys(folders)))
    plain = [team for team in teams if not team.name.endswith(FORGETFUL)]
    options = teams[0].options

    reward = Points.of(plain, lambda team: _reward(team, reference))
    slope = _slope(reward)
    whole = Points.of(plain, lambda team: _whole_time(team, reference))
    levels = [Points.of(plain, lambda team, j=j: _frames_to(team, reference, j)) for j in range(len(LEVELS))]  # type: ignore[misc]
    lost = Points.of(teams, lambda team: _forgetting(team, reference))
    spared = Points.of(teams, lambda team: _transfer(team, reference))
    played = Points.of(plain, lambda team: _total(team, "frames"))
    traffic = Points.of([team for team in plain if not team.alone], lambda team: _total(team, "traffic"))

    figure = new_figure(15, 8.8)
    (ar, at, to), (forgot, frames, sent) = figure.subplots(2, 3)
    _draw_reward(ar, reward, slope, _best(plain, reference))
    _draw_against_n(at, whole, f"Agent time to {100 * WHOLE:g} % of the mean over tasks (Figure 1b)")
    at.set_ylim(0, 1.15 * at.get_ylim()[1])  # arrows of lower bounds below the title
    at.set_ylabel("AT, part of the isolated agent's frames")
    _draw_levels(to, levels)
    _draw_forgetting(forgot, lost, ("with EWC", "without EWC") if options.ewc else ("without EWC",))
    _draw_against_n(frames, played, "Frames played by all agents")
    _draw_unshared(frames, played)
    frames.set_ylabel("frames, identification included")
    _draw_against_n(sent, traffic, "Between all agents and the hub")
    sent.set_ylabel("bytes, both ways, compressed")
    names = ", ".join(task.partition("/")[2] for task in options.tasks)
    seeds = len(reference.isolated)
    figure.suptitle(f"{names} ({seeds} seed{'s' if seeds > 1 else ''})", x=0.01, ha="left", fontsize=12, weight="bold")
    write_caption(figure, _caption(options, reference), shlex.join(["marl", "plot", *map(str, folders)]))
    save(figure, out)

    measures = [*reward.measures, *([slope] if slope else []), *_best(plain, reference), *whole.measures]
    measures += [measure for level in levels for measure in level.measures]
    measures += lost.measures + spared.measures + played.measures + traffic.measures
    return Figures(out, [row for measure in measures for row in measure.rows()])


# ---- reading ------------------------------------------------------------------------------------------------------


def _read(folders: Sequence[Path]) -> tuple[list[Team], Reference]:
    """The teams of all runs, the isolated ones (of the first run that has them) first; and their scale."""
    runs = []
    for folder in folders:
        name, _, options, seeds, _ = read_run(folder)
        if name != "lifelong":
            raise UserError(f"{folder} is a run of the experiment {name}, expected one of marl lifelong")
        if options.isolated:
            raise UserError(
                f"{folder} has no agents with a hub: it was made with --isolated, and has nothing to compare"
            )
        if not (folder / RESULTS).exists():
            raise UserError(f"{folder} is not finished: marl resume {folder}")
        runs.append((folder, options, sorted(seeds)))
    runs.sort(key=lambda run: run[1].agents)
    first, wanted, seeds = runs[0]
    for (before, other, _), (folder, options, own) in itertools.pairwise(runs):
        _compare("seeds", first, seeds, folder, own)
        for field in dataclasses.fields(options):
            if field.name not in FREE:
                _compare(field.name, first, getattr(wanted, field.name), folder, getattr(options, field.name))
        if options.agents == other.agents:
            raise UserError(f"{before} and {folder} both have {options.agents} agents; plot one of them")

    isolated: dict[str, Team] = {}
    sharing: list[Team] = []
    reference: Reference | None = None
    for folder, options, own in runs:
        curves = read_results(folder)
        table = shared(curves, own)
        scale = Reference(table, options)
        reference = reference or scale
        if not np.allclose(scale.isolated, reference.isolated):
            logging.getLogger("marl").warning("the isolated agent of %s is not that of %s, which counts", folder, first)
        for end in ("", FORGETFUL) if options.without_ewc else ("",):
            isolated.setdefault(ISOLATED + end, Team("isolated" + end, 1, ISOLATED + end, curves, table, options))
            sharing.append(Team(f"N = {options.agents}{end}", options.agents, SHARED + end, curves, table, options))
    if reference is None or not reference.defined.any():
        raise UserError(
            "the isolated agent is no better than a random policy on any task: there is nothing to measure by"
        )
    return [*isolated.values(), *sharing], reference


def _compare(name: str, first: Path, wanted: Any, folder: Path, got: Any) -> None:
    if got != wanted:
        raise UserError(f"{name} of {folder}: {_short(got)}, of {first}: {_short(wanted)}; plot alike runs together")


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


# ---- measuring ----------------------------------------------------------------------------------------------------


def _reward(team: Team, reference: Reference) -> Measure:
    scores = reward_of(team.name, team.table, team.options, reference).scores
    return Measure.of(team.label, "AR", "1: isolated, 0: random", np.array([defined_mean(row) for row in scores]))


def _best(teams: Sequence[Team], reference: Reference) -> list[Measure]:
    """What the paper reports, of those who share; none with fewer than five seeds."""
    found = []
    for team in teams:
        best = reward_of(team.name, team.table, team.options, reference).best_of_5
        if best is not None and not team.alone:
            value = np.array([defined_mean(best)])
            found.append(Measure.of(team.label, "AR, best of 5 seeds", "1: isolated, 0: random", value))
    return found


def _slope(reward: Points) -> Measure | None:
    """Least squares of each seed's AR over N; None where there is only one N."""
    x, values = reward.curve()
    if len(x) < 2:
        return None
    return Measure.of("all N", "slope of AR", "AR per agent", np.polyfit(x, values, 1)[0])


def _whole_time(team: Team, reference: Reference) -> Measure | None:
    time = whole_time_of(team.name, team.table, team.options, reference)
    if time is None:
        return None
    name = f"AT {100 * WHOLE:g} % of the mean over tasks"
    late = time.censored[..., 0].mean(1)
    return Measure.of(team.label, name, "of the isolated agent's frames", time.time[..., 0].mean(1), late)


def _frames_to(team: Team, reference: Reference, level: int) -> Measure | None:
    times = list(times_of(team.name, team.table, team.options, reference).values())
    if not times:
        return None
    frames = np.mean([time.time[..., level].mean(1) for time in times], axis=0) * reference.frames
    late = np.mean([time.censored[..., level].mean(1) for time in times], axis=0)
    return Measure.of(team.label, f"frames to {100 * LEVELS[level]:g} %", "frames per agent and task", frames, late)


def _forgetting(team: Team, reference: Reference) -> Measure | None:
    lost = forgetting_of(team.name, team.table, team.options, reference)
    return None if np.isnan(lost).any() else Measure.of(team.label, "forgetting", "1: isolated, 0: random", lost)


def _transfer(team: Team, reference: Reference) -> Measure | None:
    spared = transfer_of(team.name, team.curves, team.options, reference)
    return None if np.isnan(spared).any() else Measure.of(team.label, "forward transfer", TRANSFER, spared)


def _total(team: Team, name: str) -> Measure:
    return Measure.of(team.label, name, METRICS[name].unit, team.table[team.name, name][1][:, -1])


# ---- drawing ------------------------------------------------------------------------------------------------------


def _draw_reward(axes: Axes, points: Points, slope: Measure | None, best: Sequence[Measure]) -> None:
    _draw_against_n(axes, points, "Normalised agent reward (Figure 1a)")
    axes.set_ylabel("AR: 1 is the isolated agent, 0 a random policy")
    x, values = points.curve()
    if slope is not None:
        middle, (low, high) = slope.mean, slope.interval()
        interval = "" if np.isnan(low) else f" [{low:.2g}, {high:.2g}]"
        line = values.mean() + middle * (x - x.mean())
        axes.plot(x, line, ":", color=TOGETHER, linewidth=1.4, label=f"least squares: {middle:.2g}{interval} per agent")
    if best:
        places = [team.agents for team in points.teams if not team.alone]
        tops = [measure.mean for measure in best]
        axes.plot(places, tops, "D", color=TOGETHER, markerfacecolor="none", label="best of 5 seeds, as in the paper")
    low, high = axes.get_ylim()
    ends = np.array([1, x[-1]])
    axes.plot(ends, PAPER * ends, "--", color=CLAIM, linewidth=1.4, label=f"the paper's claim: {PAPER:g} N")
    top = max(high, min(1.05 * PAPER * ends[-1], 1.6 * high))  # a line that is far above all dots does not squash them
    axes.set_ylim(low, top)
    axes.legend(fontsize=8, frameon=False, loc="best")


def _draw_against_n(axes: Axes, points: Points, title: str) -> None:
    """Each team at its N, those who share joined by a line."""
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("N, agents")
    tidy(axes)
    if not points.teams:
        axes.text(0.5, 0.5, "not defined for these draws of tasks", ha="center", color="0.4", transform=axes.transAxes)
        return
    most = max(team.agents for team in points.teams)
    step = 0.025 * max(most - 1, 2)
    lone = any(team.agents == 1 and not team.alone for team in points.teams)  # beside which the isolated agent stands
    sharing = [(t.agents, m.mean) for t, m in zip(points.teams, points.measures, strict=True) if not t.alone]
    axes.plot(*zip(*sharing, strict=True), color=TOGETHER, linewidth=1.2, alpha=0.6)
    for team, measure in zip(points.teams, points.measures, strict=True):
        place = team.agents - 2 * step * (team.alone and lone)
        measure.draw(axes, place, team.colour, "s" if team.alone else "o", step / 2)
    if any(team.alone for team in points.teams):
        axes.plot([], [], "s", color=ALONE, label="isolated agent, no hub")
    axes.plot([], [], "o", color=TOGETHER, label="N agents and a hub")
    axes.set_xticks(sorted({team.agents for team in points.teams}))
    axes.margins(y=0.12)
    axes.set_xlim(1 - 4 * step, most + 4 * step)
    if max(measure.values.max() for measure in points.measures) >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, loc="best")


def _draw_unshared(axes: Axes, played: Points) -> None:
    """What N isolated agents would play."""
    alone = next(m.mean for team, m in zip(played.teams, played.measures, strict=True) if team.alone)
    ends = np.array([1, max(team.agents for team in played.teams)])
    axes.plot(ends, alone * ends, "--", color=ALONE, linewidth=1.2, label="N isolated agents")
    axes.set_ylim(top=max(axes.get_ylim()[1], 1.05 * alone * ends[-1]))
    axes.legend(fontsize=8, frameon=False, loc="best")


def _draw_levels(axes: Axes, levels: Sequence[Points]) -> None:
    """Frames to a part of the isolated agent's reward: a place on the axis for each team, a colour for each part."""
    from matplotlib import colormaps
    from matplotlib.ticker import EngFormatter

    axes.set_title("Frames to x % of the isolated agent's reward (Figure 2)", loc="left", fontsize=10)
    axes.set_ylabel("frames, mean over agents and tasks")
    tidy(axes)
    labels: list[str] = []
    for j, (level, points) in enumerate(zip(LEVELS, levels, strict=True)):
        colour = colormaps["viridis_r"](0.1 + 0.85 * j / (len(LEVELS) - 1))
        labels = [team.label for team in points.teams]
        for k, measure in enumerate(points.measures):
            measure.draw(axes, k + 0.15 * (j - 2), colour, "o", 0.04)
        axes.plot([], [], "o", color=colour, label=f"{100 * level:g} %")
    _name_places(axes, labels)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(bottom=0)
    if labels:
        axes.legend(
            fontsize=8, frameon=False, ncols=len(LEVELS), loc="upper center", columnspacing=0.9, handletextpad=0.1
        )
        axes.set_ylim(top=1.15 * axes.get_ylim()[1])


def _draw_forgetting(axes: Axes, lost: Points, kinds: Sequence[str]) -> None:
    axes.set_title("Forgetting: after learning a task minus in the end", loc="left", fontsize=10)
    axes.set_ylabel("lost, 1: isolated, 0: random")
    tidy(axes)
    labels = list(dict.fromkeys(team.label.removesuffix(FORGETFUL) for team in lost.teams))
    both = any(team.name.endswith(FORGETFUL) for team in lost.teams)
    for team, measure in zip(lost.teams, lost.measures, strict=True):
        without = team.name.endswith(FORGETFUL)
        place = labels.index(team.label.removesuffix(FORGETFUL)) + both * (0.12 if without else -0.12)
        measure.draw(axes, place, PLAIN if without else TOGETHER, "D" if without else "o", 0.05)
    for shape, colour, label in zip("oD"[: 1 + both], (TOGETHER, PLAIN), kinds, strict=False):
        axes.plot([], [], shape, color=colour, label=label)
    axes.axhline(0, color="0.6", linewidth=0.8)
    _name_places(axes, labels)
    axes.legend(fontsize=8, frameon=False, loc="best")


def _name_places(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)


def _caption(options: LifelongOptions, reference: Reference) -> str:
    text = (
        "large marks: mean over seeds, with Student's 95 % interval; small marks: each seed; hollow, with an arrow: a "
        "lower bound, as so many % never arrived and count with the frames that they played; triangles: seeds with such"
    )
    left_out = [task for task, kept in zip(options.tasks, reference.defined, strict=True) if not kept]
    if left_out:
        text += f"; left out, as the isolated agent is no better than a random policy there: {', '.join(left_out)}"
    return text
