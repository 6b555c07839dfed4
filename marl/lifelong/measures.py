"""One number of one team over its seeds: how it is drawn, and its line in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from marl.classic.experiments.base import Array
from marl.stats import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        group: whose number it is.
        quantity: which number; ``(lower bound)`` at its end where some of what it is made of never arrived.
        n: seeds.
        estimate: the mean over seeds.
        low, high: Student's 95 % interval; nan for a single seed, and for a lower bound, of which nobody knows it.
        unit: of the last three.
    """

    group: str
    quantity: str
    n: int
    estimate: float
    low: float
    high: float
    unit: str


class Measure(NamedTuple):
    """A number of each seed.

    Attributes:
        group, quantity, unit: see ``Row``.
        values: ``[S]``.
        late: ``[S]``, the share that never arrived of what a seed's value is the mean of; above 0: a lower bound.
    """

    group: str
    quantity: str
    unit: str
    values: Array
    late: Array

    @classmethod
    def of(cls, group: str, quantity: str, unit: str, values: Array, late: Array | None = None) -> Measure:
        return cls(group, quantity, unit, values, np.zeros(len(values)) if late is None else late)

    @property
    def bound(self) -> bool:
        """Whether the mean is a lower bound."""
        return bool((self.late > 0).any())

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    def interval(self) -> tuple[float, float]:
        """Low and high; see ``Row``."""
        low, high = t_interval(self.values)
        return (np.nan, np.nan) if self.bound else (float(low), float(high))

    def rows(self) -> list[Row]:
        """Its line; for a lower bound a second one, how much never arrived."""
        never = float(self.late.mean())
        name, n = self.quantity + (" (lower bound)" if self.bound else ""), len(self.values)
        rows = [Row(self.group, name, n, self.mean, *self.interval(), self.unit)]
        if self.bound:
            unit = "share of what the mean is over"
            rows.append(Row(self.group, f"{self.quantity} never reached", n, never, np.nan, np.nan, unit))
        return rows

    def draw(self, axes: Axes, x: float, colour: Any, marker: str = "o", spread: float = 0.0) -> None:
        """The mean and its interval, and a dot for each seed beside it.

        Where it is a lower bound the mean is hollow, with an arrow upwards and the percentage that never arrived.

        Args:
            axes: where.
            x: of the mean.
            colour: of everything.
            marker: of the mean.
            spread: how far from the mean the first and the last seed's dots are.
        """
        if len(self.values) > 1:
            places = x + spread * np.linspace(-1, 1, len(self.values))
            for late, shape in ((False, "o"), (True, "^")):
                who = (self.late > 0) == late
                axes.plot(
                    places[who], self.values[who], shape, color=colour, markersize=4, alpha=0.4, markeredgewidth=0
                )
        low, high = self.interval()
        if not np.isnan(low):
            axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.8)
        if self.bound:
            arrow = {"arrowstyle": "<-", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", (x, self.mean), (0, 18), textcoords="offset points", arrowprops=arrow)
            never = {"textcoords": "offset points", "ha": "center", "fontsize": 6.5, "color": colour}
            axes.annotate(f"{100 * self.late.mean():.0f}", (x, self.mean), (0, 19), **never)
        face = "white" if self.bound else colour
        axes.plot([x], [self.mean], marker, color=colour, markerfacecolor=face, markersize=6)
