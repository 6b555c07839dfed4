"""Learning curves of one or several runs as a picture and as a table."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marl import registry
from marl.config import suggestion, to_json
from marl.drawing import band_style, line_style, new_figure, save, tidy, write_caption
from marl.log import COLUMNS, CSV, METRICS, member_settings
from marl.runfolder import PARTS, read_training
from marl.stats import Array, bootstrap, common_grid, iqm
from marl.types import UserError


class Row(NamedTuple):
    """Where one group of seeds ended.

    Attributes:
        group: what sets it apart from the other groups.
        n: seeds.
        step: environment steps per member at which the values are taken.
        estimate: IQM over the seeds (their mean where n < 4).
        low, high: 95 % bootstrap interval; nan for a single seed.
        unit: of the last three.
    """

    group: str
    n: int
    step: int
    estimate: float
    low: float
    high: float
    unit: str


class Curves(NamedTuple):
    """What ``plot`` made: the picture's path and one row for each group."""

    path: Path
    table: list[Row]


class _Seed(NamedTuple):
    settings: dict[str, Any]
    steps: Array
    values: Array


def plot(runs: Sequence[Path], out: Path, metric: str = "eval/return_mean") -> Curves:
    """Draw ``metric`` over training, one curve for each group of members that differ in nothing but their seed.

    The line is the interquartile mean over the group's seeds, the band its 95 % percentile bootstrap interval, position
    by position; a single seed has no band. Curves are compared on the steps that every seed of a group reached.

    Args:
        runs: run folders; of one that workers share, what its parts have recorded.
        out: the PNG; its name ends so.
        metric: a name in ``marl.log.METRICS``; the member's value is drawn.

    Raises:
        UserError: an unknown metric, a folder without a run, a run that has not recorded the metric yet, or an ``out``
            that cannot be written.
    """
    if metric not in METRICS:
        raise UserError(f"no metric {metric!r}{suggestion(metric, METRICS)}")
    seeds = [seed for run in dict.fromkeys(runs) for seed in _seeds(run, metric)]
    groups = _groups(seeds)
    summaries = {label: _summarise(members) for label, members in groups.items()}
    unit = METRICS[metric].member_unit
    table = [
        Row(label, len(groups[label]), int(s.steps[-1]), float(s.middle[-1]), float(s.low[-1]), float(s.high[-1]), unit)
        for label, s in summaries.items()
    ]
    figure = _draw(summaries, {label: len(members) for label, members in groups.items()}, metric, seeds, runs)
    save(figure, out)
    return Curves(out, table)


def _seeds(run: Path, metric: str) -> Iterator[_Seed]:
    config = read_training(run)
    curves: dict[str, dict[int, float]] = {}
    for row in itertools.chain.from_iterable(map(read_metrics, _sources(run, config))):
        if row["metric"] == metric and not row["agent"]:
            curves.setdefault(row["member"], {})[int(row["step"])] = float(row["value"])
    if not curves and metric.startswith("eval/") and config.get("loop", {}).get("eval_every") == 0:
        raise UserError(f"{run} records no {metric}, with --eval-every 0; choose another, --metric train/return_mean")
    if not curves:
        raise UserError(f"{run} has not recorded {metric} yet")
    for member, curve in curves.items():
        steps = np.array(sorted(curve), dtype=np.float64)
        yield _Seed(member_settings(config, member), steps, np.array([curve[int(step)] for step in steps]))


def _sources(run: Path, config: Mapping[str, Any]) -> list[Path]:
    """Where a run's numbers are newest: in its parts, where workers share it, or in the run itself."""
    places = [run / PARTS / part for part in config.get("parts", {})]
    return [place for place in places if (place / CSV).exists()] or [run]


def read_metrics(run: Path) -> Iterator[dict[str, str]]:
    """The rows of ``metrics.csv`` by column; a damaged line is left out, and the last one while it is being written."""
    try:
        with (run / CSV).open(newline="\n", encoding="utf-8", errors="replace") as file:
            yield from filter(None, map(_row, file))
    except FileNotFoundError:
        raise UserError(f"{run} has no {CSV}: nothing was recorded yet") from None
    except OSError as error:
        raise UserError(f"{run / CSV} cannot be read: {error.strerror}") from None


def _row(line: str) -> dict[str, str] | None:
    """One line by column; None for the head, and for what is not a whole row with numbers for step and value."""
    if not line.endswith("\n"):
        return None
    try:
        (row,) = csv.reader([line])
        by_column = dict(zip(COLUMNS, row, strict=True))
        int(by_column["step"]), float(by_column["value"])
    except (ValueError, csv.Error):
        return None
    return by_column


def _groups(seeds: list[_Seed]) -> dict[str, list[_Seed]]:
    """Label -> the seeds whose settings agree; the label says only what differs between groups."""
    settings = [{key: str(value) for key, value in seed.settings.items() if key != "seed"} for seed in seeds]
    defaults = {algorithm: _defaults(algorithm) for algorithm in {each.get("algorithm", "") for each in settings}}

    def differs(name: str) -> bool:
        """What an algorithm or environment brings with it, and others lack or have otherwise, their names say."""
        holders = {((each.get("algorithm"), each.get("environment")), name in each) for each in settings}
        some_lack_it = len(holders) > len({names for names, _ in holders})
        values = {(each.get("algorithm", ""), each[name]) for each in settings if name in each}
        by_default = len(values) == len({algorithm for algorithm, _ in values}) and all(
            defaults[algorithm].get(name) == value for algorithm, value in values
        )
        return some_lack_it or (len({value for _, value in values}) > 1 and not by_default)

    differing = [name for name in dict.fromkeys(name for each in settings for name in each) if differs(name)]
    groups: dict[str, list[_Seed]] = {}
    seen: set[str] = set()
    for seed, each in zip(seeds, settings, strict=True):
        training = str(sorted((key, str(value)) for key, value in seed.settings.items()))
        if training in seen:
            logging.getLogger("marl").warning("seed %s was trained twice alike; it counts once", seed.settings["seed"])
            continue
        seen.add(training)
        parts = [each.get("algorithm", "run").upper()]
        for name in differing:
            if name == "environment":
                parts.append(each.get(name, ""))
            elif name != "algorithm" and name in each:
                parts.append(f"{name} = {each[name]}")
        groups.setdefault(", ".join(parts), []).append(seed)
    return groups


def _defaults(algorithm: str) -> dict[str, str]:
    """An algorithm's settings where none is given; empty for one that is not known here."""
    try:
        config = json.loads(json.dumps(to_json(registry.algorithm(algorithm).Config())))
    except UserError:
        return {}
    return {name: str(value) for name, value in member_settings({"config": config}, "").items()}


class _Summary(NamedTuple):
    steps: Array
    middle: Array
    low: Array
    high: Array


def _summarise(members: list[_Seed]) -> _Summary:
    steps, values = common_grid([(seed.steps, seed.values) for seed in members])
    if not len(steps):
        raise UserError("the runs of one group have no step in common; plot them after they have run further")
    if len(members) == 1:
        unknown = np.full(len(steps), np.nan)
        return _Summary(steps, values[0], unknown, unknown)
    return _Summary(steps, iqm(values), *bootstrap(values))


def _draw(
    summaries: dict[str, _Summary], counts: dict[str, int], metric: str, seeds: list[_Seed], runs: Sequence[Path]
) -> Any:
    from matplotlib.ticker import EngFormatter

    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for i, (label, summary) in enumerate(summaries.items()):
        n = counts[label]
        line = f"{label} ({n} seed{'s' if n > 1 else ''})"
        axes.plot(summary.steps, summary.middle, linewidth=1.8, label=line, **line_style(i))
        axes.fill_between(summary.steps, summary.low, summary.high, **band_style(i))
    environments = dict.fromkeys(str(seed.settings.get("environment", "")) for seed in seeds)
    axes.set_title(", ".join(environments), loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("environment steps per member")
    axes.set_ylabel(
        f"{metric.partition('/')[0]} {metric.partition('/')[2].replace('_', ' ')}\n[{METRICS[metric].member_unit}]"
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axes)
    _write_legend(figure, axes)
    command = shlex.join(["marl", "plot", *map(str, runs), "--metric", metric])
    write_caption(figure, _legend_of_lines(counts), command)
    return figure


def _write_legend(figure: Any, axes: Any) -> None:
    """Among the curves; above them, in lines as wide as the picture, where an entry would cover most of them."""
    handles, labels = axes.get_legend_handles_labels()
    if max(map(len, labels)) <= 60:
        axes.legend(loc="best", fontsize=9, framealpha=0.8, edgecolor="none")
        return
    wrapped = [textwrap.fill(label, 100, break_on_hyphens=False) for label in labels]
    figure.set_figheight(figure.get_figheight() + 0.18 * "\n".join([*wrapped, ""]).count("\n"))
    figure.legend(handles, wrapped, loc="outside upper left", fontsize=9, frameon=False)


def _legend_of_lines(counts: dict[str, int]) -> str:
    few, many = min(counts.values()), max(counts.values())
    middle = "mean" if many < 4 else "IQM" if few >= 4 else "IQM (mean below 4 seeds)"
    return f"line: {middle}" + ("; band: 95 % bootstrap interval over seeds" if many > 1 else "")
