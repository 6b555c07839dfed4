"""What a run has to say at its end: how good the teams were before training, and how good they are now."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from marl.log import METRICS
from marl.plot import read_metrics
from marl.runfolder import read_training
from marl.stats import t_quantile

MEAN, ERROR = "eval/return_mean", "eval/return_stderr"


class Change(NamedTuple):
    """One member's evaluation at the first and at the last step.

    Attributes:
        member: its name.
        step: environment steps of the last evaluation.
        before, after: mean return over the evaluation's episodes.
        before_margin, after_margin: half the width of the 95 % interval over those episodes (Student's t); nan for one.
        unit: of the returns.
    """

    member: str
    step: int
    before: float
    before_margin: float
    after: float
    after_margin: float
    unit: str

    def text(self) -> str:
        """One line for people."""
        pairs = (self.before, self.before_margin), (self.after, self.after_margin)
        single = math.isnan(self.before_margin)
        before, after = (f"{mean:.2f}" if single else f"{mean:.2f} +- {margin:.2f}" for mean, margin in pairs)
        note = "one episode" if single else "95 % interval"
        return f"{self.member}: {before} before training, {after} after {self.step} steps ({self.unit}, {note})"


def changes(run: Path) -> list[Change]:
    """One row for each member that was evaluated; raises ``UserError`` where there is no run."""
    config = read_training(run)
    episodes = config["loop"]["eval_episodes"]
    seen: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in read_metrics(run):
        if row["metric"] in (MEAN, ERROR) and not row["agent"]:
            seen[row["member"], row["metric"]].append((int(row["step"]), float(row["value"])))
    t = t_quantile(0.975, episodes - 1) if episodes > 1 else float("nan")
    result = []
    for member in (m["name"] for m in config["members"]):
        means, errors = seen[member, MEAN], seen[member, ERROR]
        if means:
            (_, before), (step, after) = means[0], means[-1]
            margins = t * errors[0][1], t * errors[-1][1]
            result.append(Change(member, step, before, margins[0], after, margins[1], METRICS[MEAN].member_unit))
    return result
