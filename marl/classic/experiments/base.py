"""What an experiment is: one seed of it, advanced in steps between which it may be stopped and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from marl.types import State

Array: TypeAlias = NDArray[np.float64]


class Row(NamedTuple):
    """One measured number.

    Attributes:
        series: the curve that it belongs to, for example ``isolated``.
        metric: a name in the experiment's ``metrics``.
        x: where on the curve; what it counts is the metric's ``x``.
        value: in the metric's unit.
    """

    series: str
    metric: str
    x: float
    value: float


@dataclass(frozen=True)
class Metric:
    """One panel of the figure, and one unit.

    Attributes:
        title: what is shown, a few words.
        unit: of the values.
        x: what the horizontal axis counts, with its unit where it has one.
        kind: ``line``: mean over seeds and its 95 % interval over x; ``points``: every (x, value) a dot, for fronts;
            ``none``: in the CSV, TensorBoard and the findings only.
        x_scale, y_scale: of the axes.
    """

    title: str
    unit: str
    x: str
    kind: Literal["line", "points", "none"] = "line"
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log", "symlog"] = "linear"


class Finding(NamedTuple):
    """A number that sums the seeds up.

    Attributes:
        name: what it is.
        values: ``[n]``, one for each seed; the runner reports their mean and Student's 95 % interval.
        unit: of the values.
    """

    name: str
    values: Array
    unit: str


Table: TypeAlias = Mapping[tuple[str, str], tuple[Array, Array]]
"""``(series, metric)`` -> x ``[T]`` and values ``[n, T]``, seeds in ascending order, where all seeds share their x."""


class Experiment(Protocol):
    """One seed of an experiment; everything random in it comes from ``np.random.SeedSequence(seed)``.

    The class is built as ``Experiment(options, seed)``, raises ``UserError`` for options that make no sense, and does
    no long work there.

    Attributes:
        Options: a frozen dataclass of ``marl.config.option`` fields, all of them with defaults that take at most some
            minutes for 20 seeds on two cores.
        metrics: name -> what it means, in the order of the panels.
        unit: what ``total`` and ``done`` count, for the progress bar: ``episodes``.
        total: how much there is to do.
        done: how much of it is done.
    """

    Options: ClassVar[type]
    metrics: ClassVar[Mapping[str, Metric]]
    unit: ClassVar[str]
    total: int
    done: int

    def __init__(self, options: Any, seed: int) -> None: ...

    def advance(self) -> Sequence[Row]:
        """Do some of the work, a second or less where that can be, and return what was measured; while done < total."""

    def state_dict(self) -> State:
        """Everything that changes: nested dictionaries of NumPy arrays and JSON values (integers of any size)."""

    def load_state_dict(self, state: State) -> None:
        """Go on from there: what follows is bit for bit what would have followed."""

    @staticmethod
    def findings(table: Table, options: Any) -> Sequence[Finding]:
        """The numbers to report, from what all seeds measured."""


Curves: TypeAlias = Mapping[tuple[str, str], Mapping[int, tuple[Array, Array]]]
"""``(series, metric)`` -> seed -> x and values, as they were measured."""


@runtime_checkable
class Uneven(Protocol):
    """An experiment that measures curves which not every seed has with the same x."""

    @staticmethod
    def uneven_findings(curves: Curves, options: Any) -> Sequence[Finding]:
        """The numbers to report behind the ``findings``, from what each seed measured."""


@runtime_checkable
class Drawn(Protocol):
    """An experiment with a picture of its own, in place of a panel for each metric."""

    @staticmethod
    def draw(curves: Curves, options: Any, command: str, out: Path) -> None:
        """Write the PNG; ``command`` is what made the run. Raises ``UserError`` where it cannot be written."""


@runtime_checkable
class Housed(Protocol):
    """An experiment that keeps files beside its checkpoint."""

    def house(self, folder: Path) -> None:
        """The folder for them, this seed's own; called before anything else, and the folder need not exist yet."""


@runtime_checkable
class Distributed(Protocol):
    """An experiment that may have workers of its own."""

    @staticmethod
    def distributed(options: Any) -> bool:
        """Whether one seed keeps several processes busy: seeds then run one after another, in the command's process."""
