"""The picture of an experiment: a panel for each metric, mean and interval over the seeds, the command below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from marl.classic.experiments.base import Array, Curves, Metric
from marl.drawing import band_style, line_style, new_figure, save, tidy, write_caption
from marl.stats import common_grid, t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 20
"""Up to so many points of a line each have a mark."""

MARKED = 8
"""Up to so many places on a logarithmic axis are written below it."""


class Line(NamedTuple):
    """One curve over its seeds.

    Attributes:
        x: ``[T]``.
        mean: ``[T]``, over the seeds.
        low, high: ``[T]``, Student's 95 % interval of the mean; nan for a single seed.
    """

    x: Array
    mean: Array
    low: Array
    high: Array


def line(of_seeds: Mapping[int, tuple[Array, Array]]) -> Line:
    """Mean and interval where every seed that has the curve was measured, between its points by straight lines."""
    curves = [(x[order], values[order]) for x, values in of_seeds.values() for order in [np.argsort(x, kind="stable")]]
    x, values = common_grid(curves)
    return Line(x, values.mean(axis=0), *t_interval(values))


def draw(name: str, metrics: Mapping[str, Metric], curves: Curves, seeds: int, command: str, out: Path) -> None:
    """Draw every metric of kind ``line`` or ``points``; a series has the same colour in all panels.

    Args:
        name: the experiment's, above the picture.
        metrics: name -> what it means, in the order of the panels.
        curves: what was measured.
        seeds: how many there are.
        command: what made the run.
        out: the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    panels = {
        key: {series: of_seeds for (series, metric), of_seeds in curves.items() if metric == key}
        for key, metric in metrics.items()
        if metric.kind != "none"
    }
    order = {s: i for i, s in enumerate(dict.fromkeys(series for series, metric in curves if metric in panels))}
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = max(1, math.ceil(len(panels) / columns))
    figure = new_figure(max(5.0 * columns, 6.5), 3.6 * rows + 0.22 * math.ceil(len(order) / (2 * columns)) + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    shown: dict[str, Any] = {}
    for axes, (key, panel) in zip(grid, panels.items(), strict=False):
        for series, of_seeds in panel.items():
            paint = _draw_points if metrics[key].kind == "points" else _draw_line
            shown.setdefault(series, paint(axes, of_seeds, order[series]))
        _label(axes, metrics[key])
    labels = sorted(shown, key=lambda series: order[series])
    wide = 0.7 + 0.075 * max(map(len, labels), default=0)  # inches that an entry of the legend takes
    figure.legend(
        [shown[series] for series in labels],
        labels,
        loc="outside upper left",
        title=f"{name} ({seeds} seed{'s' if seeds > 1 else ''})",
        title_fontproperties={"weight": "bold", "size": 12},
        alignment="left",
        ncols=max(1, min(len(labels), int(figure.get_figwidth() / wide))),
        fontsize=9,
        frameon=False,
    )
    write_caption(figure, _caption(metrics, seeds), command)
    save(figure, out)


def _draw_line(axes: Axes, of_seeds: Mapping[int, tuple[Array, Array]], i: int) -> Any:
    x, mean, low, high = line(of_seeds)
    if len(x) == 1:
        return axes.errorbar(
            x, mean, np.stack([mean - low, high - mean]), fmt="o", capsize=4, color=line_style(i)["color"]
        )
    marks: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(x) <= FEW else {}
    axes.fill_between(x, low, high, **band_style(i))
    return axes.plot(x, mean, linewidth=1.6, **line_style(i), **marks)[0]


def _draw_points(axes: Axes, of_seeds: Mapping[int, tuple[Array, Array]], i: int) -> Any:
    x, values = (np.concatenate(parts) for parts in zip(*of_seeds.values(), strict=True))
    marker = "oxs^"[i % 4]
    return axes.plot(x, values, marker, color=line_style(i)["color"], markersize=4.5, alpha=0.6, linestyle="none")[0]


def _label(axes: Axes, metric: Metric) -> None:
    """Title, units and scales."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

    axes.set_title(metric.title, loc="left", fontsize=10)
    axes.set_xlabel(metric.x, fontsize=9)
    axes.set_ylabel(textwrap.fill(metric.unit, 45), fontsize=9)
    axes.set_xscale(metric.x_scale)
    drawn = np.array([y for shape in axes.get_lines() for y in np.asarray(shape.get_ydata())], dtype=float)
    if metric.y_scale == "symlog" and (drawn <= 0).any():
        least = _smallest(np.abs(drawn))
        axes.set_yscale("symlog", linthresh=least)
        if (drawn >= 0).all():  # a band may reach below 0, where its line never is: half the panel would be empty
            axes.set_ylim(bottom=-0.2 * least)
    elif metric.y_scale != "linear" and (drawn > 0).any():  # a logarithm of nothing but zeros has no place for them
        axes.set_yscale("log")
    tidy(axes)
    if metric.kind == "points":
        axes.margins(0.05)
        return
    x = np.unique(np.array([x for shape in axes.get_lines() for x in np.asarray(shape.get_xdata())], dtype=float))
    if metric.x_scale == "log" and len(x) <= MARKED:
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())  # of this axis alone: a short logarithmic y axis has no other ticks
    elif metric.x_scale == "linear" and np.array_equal(x, np.round(x)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _smallest(values: Array) -> float:
    """A power of ten that no number but 0 is much below: there the scale turns from logarithmic to linear."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(10.0 ** math.floor(math.log10(positive.min()))) if len(positive) else 1.0


def _caption(metrics: Mapping[str, Metric], seeds: int) -> str:
    kinds = {metric.kind for metric in metrics.values()}
    parts = []
    if "line" in kinds:
        parts.append(
            "line: mean over seeds; band: Student's 95 % interval of the mean" if seeds > 1 else "line: one seed"
        )
    if "points" in kinds:
        parts.append("points: every seed's")
    return "; ".join(parts)
