"""What the experiments with teams that cooperate, are isolated or centralised measure alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marl.classic.experiments.base import Array, Finding, Table


def grid(episodes: int) -> list[int]:
    """Where curves are measured: evenly on a logarithmic axis at first, then evenly on a linear one."""
    early = np.geomspace(1, episodes, 25)
    late = np.linspace(0, episodes, 26)[1:]
    return sorted({round(float(x)) for x in (*early, *late)})


def exponent(x: Array, regret: Array) -> Array:
    """``[n]``: slope of log regret against log episodes, by least squares over the last nine tenths of the run."""
    late = x >= x[-1] / 10
    slope: Array = np.polyfit(np.log(x[late]), np.log(np.maximum(regret[:, late], 1e-12)).T, 1)[0]
    return slope


def last(table: Table, series: str, metric: str) -> Array:
    """``[n]``, where each seed's curve ends."""
    return table[series, metric][1][:, -1]


def regret_findings(table: Table, series: Sequence[str], unit: str) -> list[Finding]:
    """Each team's regret and its exponent, and the ratios between teams; needs the metric ``regret``."""
    return [
        *(Finding(f"regret, {name}", last(table, name, "regret"), unit) for name in series),
        *(Finding(f"exponent of regret, {name}", exponent(*table[name, "regret"]), "") for name in series),
        Finding("regret, cooperating / centralised", _ratio(table, "cooperating", "centralised", "regret"), "ratio"),
        Finding("regret, isolated / cooperating", _ratio(table, "isolated", "cooperating", "regret"), "ratio"),
    ]


def communication_findings(table: Table, unit: str, bytes_each: float) -> list[Finding]:
    """Rounds and bytes; needs the metrics ``rounds``, ``bytes`` and ``rounds_whole``; ``unit`` is of so many bytes."""
    lengths, rounds = table["cooperating", "rounds_whole"]
    longer = f"rounds at T = {lengths[-1]:.0f} / rounds at T = {lengths[0]:.0f}"
    of_rounds, of_bytes = (100 * _ratio(table, "cooperating", "centralised", name) for name in ("rounds", "bytes"))
    return [
        Finding("rounds, cooperating", last(table, "cooperating", "rounds"), "rounds"),
        Finding("rounds, cooperating / centralised", of_rounds, "%"),
        Finding(longer, rounds[:, -1] / np.maximum(rounds[:, 0], 1e-12), "ratio"),
        Finding("sent and received, cooperating", last(table, "cooperating", "bytes") / bytes_each, unit),
        Finding("sent and received, cooperating / centralised", of_bytes, "%"),
    ]


def _ratio(table: Table, over: str, under: str, metric: str) -> Array:
    return last(table, over, metric) / np.maximum(last(table, under, metric), 1e-12)
