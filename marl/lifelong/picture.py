"""The picture of one lifelong run: how each task was learnt, what became of it, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marl.classic.experiments.base import Array, Curves
from marl.classic.figure import line
from marl.classic.results import shared
from marl.drawing import COLOURS, new_figure, save, tidy, write_caption
from marl.lifelong.findings import FORGETFUL, ISOLATED, SHARED, Reference, returns_after, size_of, teams, times_of
from marl.lifelong.measures import Measure
from marl.lifelong.metrics import LEVELS, normalised
from marl.lifelong.options import LifelongOptions
from marl.lifelong.records import agent_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALONE, TOGETHER, LENT = "0.6", COLOURS[0], COLOURS[2]
"""Colours: agents without a hub, agents with one, those of them who borrow."""

LEVEL = 3
"""Of ``LEVELS``, the part of the isolated agent's reward whose agent time is shown: 80 %."""

COLUMNS = 4


def draw(curves: Curves, options: LifelongOptions, command: str, out: Path) -> None:
    """A panel for each task, while it is learnt; then AR and AT by task, frames and traffic by round.

    Args:
        curves: what was measured.
        options: of the run.
        command: what made it.
        out: the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    seeds = sorted(next(iter(curves.values())))
    table = shared(curves, seeds)
    reference = Reference(table, options)
    rows = math.ceil(len(options.tasks) / COLUMNS)
    figure = new_figure(4.2 * COLUMNS, 3.2 * (rows + 1) + 0.9)
    grid = figure.add_gridspec(rows + 1, 12)
    wide = 12 // min(len(options.tasks), COLUMNS)
    for k, task in enumerate(options.tasks):
        row, column = divmod(k, COLUMNS)
        axes = figure.add_subplot(grid[row, column * wide : (column + 1) * wide])
        _draw_learning(axes, curves, options, task, seeds)
        for level, style in ((reference.random[k], ":"), (reference.isolated[:, k].mean(), "--")):
            axes.axhline(level, color="0.55", linewidth=1, linestyle=style)
        axes.set_title(task.partition("/")[2], loc="left", fontsize=10)
        if column == 0:
            axes.set_ylabel("return per episode, as it is learnt", fontsize=9)
    below = [figure.add_subplot(grid[rows, 3 * i : 3 * i + 3]) for i in range(4)]
    _draw_by_task(below[0], options, {team: _rewards(team, table, options, reference) for team in teams(options)})
    below[0].set_title("AR: return in the end, 1: isolated, 0: random", loc="left", fontsize=10)
    below[0].axhline(1, color="0.55", linewidth=1, linestyle="--")
    _draw_by_task(below[1], options, {team: _times(team, table, options, reference) for team in teams(options)})
    below[1].set_title(f"AT: frames to {100 * LEVELS[LEVEL]:g} % of the isolated agent", loc="left", fontsize=10)
    below[1].set_ylim(bottom=-0.03)
    below[1].set_ylabel("part of the isolated agent's frames", fontsize=9)
    for axes, metric, title in (
        (below[2], "frames", "Frames of all agents"),
        (below[3], "traffic", "Bytes to and from the hub"),
    ):
        _draw_totals(axes, curves, options, metric)
        axes.set_title(title, loc="left", fontsize=10)
    _draw_legend(figure, options, len(seeds))
    text = (
        "lines and large marks: mean over seeds; bands and bars: Student's 95 % interval; small marks: each seed; "
        "arrows: lower bounds, as so many % never arrived; dotted: random policy; thin dashes: isolated agent, "
        "in the end"
    )
    text += "; diamonds: no EWC" if options.without_ewc else ""
    write_caption(figure, text, command)
    save(figure, out)


def _style(team: str, lent: bool = False) -> dict[str, Any]:
    colour = ALONE if team.startswith(ISOLATED) else LENT if lent else TOGETHER
    dashes: Any = (0, (4, 1.5)) if team.endswith(FORGETFUL) else "-"
    return {"color": colour, "linestyle": dashes, "linewidth": 2.8 if colour == ALONE else 1.6}


def _draw_legend(figure: Any, options: LifelongOptions, seeds: int) -> None:
    from matplotlib.lines import Line2D

    entries: list[tuple[dict[str, Any], str]] = []
    for team in teams(options):
        end, n = (FORGETFUL if team.endswith(FORGETFUL) else ""), size_of(team, options)
        if team.startswith(SHARED):
            who = f"{n} agent{'s' if n > 1 else ''} with a hub{end}"
            entries += [(_style(team), f"{who}, playing"), (_style(team, lent=True), f"{who}, borrowing")][: min(n, 2)]
        else:
            entries.append((_style(team), f"isolated agent{'s' if n > 1 else ''}{end}"))
    figure.legend(
        [Line2D([], [], **style) for style, _ in entries],
        [label for _, label in entries],
        loc="outside upper left",
        title=f"lifelong ({seeds} seed{'s' if seeds > 1 else ''})",
        title_fontproperties={"weight": "bold", "size": 12},
        alignment="left",
        ncols=min(len(entries), 6),
        fontsize=9,
        frameon=False,
    )


# ---- while a task is learnt ---------------------------------------------------------------------------------------


def _draw_learning(axes: Axes, curves: Curves, options: LifelongOptions, task: str, seeds: Sequence[int]) -> None:
    """Return over the time for the task, in which those who borrow make as many updates as those who play."""
    drawn: list[Array] = []
    for team in teams(options):
        played, lent = _visits(curves, options, team, task)
        for values, style in ((played, _style(team)), (lent, _style(team, lent=True))):
            if values:
                x = np.linspace(0, 100, options.evals + 1)
                mean, low, high = line({seed: (x, value) for seed, value in values.items()})[1:]
                if not team.endswith(FORGETFUL):
                    axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)
                axes.plot(x, mean, **style)
                drawn += values.values()
    if drawn:  # a band of few seeds may reach far beyond them all
        least, most = float(np.min(drawn)), float(np.max(drawn))
        axes.set_ylim(least - 0.08 * (most - least + 1e-9), most + 0.08 * (most - least + 1e-9))
    else:
        axes.text(0.5, 0.5, "met by nobody", ha="center", transform=axes.transAxes)
    axes.set_xlabel("% of the time for the task", fontsize=9)
    tidy(axes)


def _visits(
    curves: Curves, options: LifelongOptions, team: str, task: str
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Seed -> mean return at each evaluation over those visits in which agents played, and in which they did not."""
    played: dict[int, list[Array]] = {}
    lent: dict[int, list[Array]] = {}
    for i in range(size_of(team, options)):
        name = agent_series(team, task, i)
        for seed, (_, returns) in curves.get((name, "learning_return"), {}).items():
            frames = curves[name, "learning_frames"][seed][1].reshape(-1, options.evals + 1)
            for clock, visit in zip(frames, returns.reshape(frames.shape), strict=True):
                (played if clock[-1] > clock[0] else lent).setdefault(seed, []).append(visit)
    return _means(played), _means(lent)


def _means(visits: Mapping[int, Sequence[Array]]) -> dict[int, Array]:
    return {seed: np.mean(values, axis=0) for seed, values in sorted(visits.items())}


# ---- in the end ---------------------------------------------------------------------------------------------------


def _rewards(team: str, table: Any, options: LifelongOptions, reference: Reference) -> dict[str, Measure]:
    after = returns_after(team, table, options)[:, :, -1].mean(1)
    scores = normalised(after, reference.random, reference.isolated.mean(0))
    kept = [k for k, defined in enumerate(reference.defined) if defined]
    return {options.tasks[k]: Measure.of(team, "AR", "", scores[:, k]) for k in kept}


def _times(team: str, table: Any, options: LifelongOptions, reference: Reference) -> dict[str, Measure]:
    found = {}
    for task, time in times_of(team, table, options, reference).items():
        values, late = time.time[..., LEVEL].mean(1), time.censored[..., LEVEL].mean(1)
        found[task] = Measure.of(team, "AT", "", values, late)
    return found


def _draw_by_task(axes: Axes, options: LifelongOptions, of_teams: Mapping[str, Mapping[str, Measure]]) -> None:
    names = [task.partition("/")[2] for task in options.tasks]
    gap = 0.7 / len(of_teams)
    for j, (team, measures) in enumerate(of_teams.items()):
        for k, task in enumerate(options.tasks):
            if task in measures:
                place = k + gap * (j - (len(of_teams) - 1) / 2)
                marker = "D" if team.endswith(FORGETFUL) else "o"
                measures[task].draw(axes, place, _style(team)["color"], marker, 0.25 * gap)
    if not any(of_teams.values()):
        axes.text(0.5, 0.5, "not defined", ha="center", color="0.4", transform=axes.transAxes)
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= COLUMNS else 35, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    tidy(axes)


def _draw_totals(axes: Axes, curves: Curves, options: LifelongOptions, metric: str) -> None:
    """Up to each round, of all agents."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for team in teams(options):
        if (team, metric) in curves and not (metric == "traffic" and team.startswith(ISOLATED)):
            found = line(curves[team, metric])
            style = _style(team)
            x, mean = np.concatenate([[0.0], found.x]), np.concatenate([[0.0], found.mean])
            axes.plot(x, mean, marker="o", markersize=3.5, **style)
            axes.fill_between(found.x, found.low, found.high, color=style["color"], alpha=0.13, linewidth=0)
    axes.set_xlabel("rounds", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axes)
