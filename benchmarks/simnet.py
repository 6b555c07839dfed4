"""How well SimNet tells tasks apart: ``python benchmarks/simnet.py small`` (2 minutes) or ``atari`` (5 minutes).

Prints Markdown. Thresholds come from seeds of their own: seeds from 200 on are recognised with what the seeds from 100
on have calibrated, and once more with thresholds that have never seen the task in question.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from marl.cli import keep_memory
from marl.envs.atari import GAMES as ATARI
from marl.envs.small import GAMES as SMALL
from marl.lifelong.simnet import STEPS, Calibration, Fingerprint, confusion_matrix, fingerprints

SUITES = {
    "small": ([f"small/{name}" for name in SMALL], 5),
    "atari": ([f"atari/{name}-ram" for name in ATARI[4:]], 3),
}
"""Tasks, and how many seeds. Settings were chosen on the small tasks and the other four games, with seeds 0 to 5."""


Prints = dict[str, list[Fingerprint]]


def by_task(tasks: Sequence[str], seeds: Sequence[int], steps: int) -> Prints:
    """Fingerprints of every task for every seed."""
    prints = fingerprints([task for task in tasks for _ in seeds], [*seeds] * len(tasks), steps)
    return {task: prints[i * len(seeds) : (i + 1) * len(seeds)] for i, task in enumerate(tasks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--frames", dest="steps", type=int, default=STEPS, help="Environment steps.")
    chosen = parser.parse_args()
    keep_memory()  # as `marl train` does
    tasks, count = SUITES[chosen.suite]
    begin = time.perf_counter()
    calibrating = by_task(tasks, range(100, 100 + count), chosen.steps)
    seconds = time.perf_counter() - begin
    asked = by_task(tasks, range(200, 200 + count), chosen.steps)
    calibration, own = Calibration.of(calibrating), Calibration.of(asked)
    print(confusion_matrix(asked, calibration.threshold).table(), end="\n\n")
    print(f"{len(tasks) * count} SimNets as one population: {seconds:.0f} s")
    for name, distances in (("one task", own.same), ("two tasks", own.other)):
        low, middle, high = (float(distances.quantile(q)) for q in (0.0, 0.5, 1.0))
        print(f"distances of {name}: {low:.3f} to {high:.3f}, median {middle:.3f}")
    print("\n| threshold | | nearest | known | new | known, other tasks' threshold | new, the same |")
    print("|---|---|---|---|---|---|---|")
    for quantile in (0.95, 1.0):
        threshold = Calibration.of(calibrating, quantile).threshold
        share = confusion_matrix(asked, threshold).accuracy
        shares = [share["nearest"], share["known"], share["unknown"], *foreign(calibrating, asked, quantile)]
        print(f"| {quantile:.0%} | {threshold:.3f} | {' | '.join(f'{x:.1%}' for x in shares)} |")


def foreign(calibrating: Prints, asked: Prints, quantile: float) -> tuple[float, float]:
    """Shares of right answers for known and new tasks, each task judged by a threshold from the other tasks alone."""
    known = new = 0.0
    for t, task in enumerate(asked):
        rest = {other: prints for other, prints in calibrating.items() if other != task}
        judged = confusion_matrix(asked, Calibration.of(rest, quantile).threshold)
        known += float(judged.known[t, t] / judged.known[t].sum())
        new += float(judged.unknown[t, -1] / judged.unknown[t].sum())
    return known / len(asked), new / len(asked)


if __name__ == "__main__":
    main()
