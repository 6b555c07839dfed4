"""How well SimNet tells tasks apart: ``python benchmarks/simnet.py small`` (2 minutes) or ``atari`` (4 minutes).

Prints Markdown. The threshold comes from seeds of its own: seeds 0 to S - 1 are recognised with what the seeds from
100 on have calibrated, and once more with a threshold that has never seen the task in question.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from marl.cli import keep_memory
from marl.envs.small import GAMES
from marl.lifelong.simnet import FRAMES, Calibration, Fingerprint, confusion_matrix, fingerprints

SUITES = {
    "small": ([f"small/{name}" for name in GAMES], 5),
    "atari": ([f"atari/{name}-ram" for name in ("RoadRunner", "Riverraid", "StarGunner", "Krull")], 3),
}
"""Tasks, and how many seeds."""


def by_task(tasks: Sequence[str], seeds: Sequence[int], frames: int) -> dict[str, list[Fingerprint]]:
    prints = fingerprints([task for task in tasks for _ in seeds], [*seeds] * len(tasks), frames)
    return {task: prints[i * len(seeds) : (i + 1) * len(seeds)] for i, task in enumerate(tasks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--frames", type=int, default=FRAMES)
    chosen = parser.parse_args()
    keep_memory()  # as `marl train` does
    tasks, count = SUITES[chosen.suite]
    begin = time.perf_counter()
    calibrating = by_task(tasks, range(100, 100 + count), chosen.frames)
    seconds = time.perf_counter() - begin
    asked = by_task(tasks, range(count), chosen.frames)
    calibration, own = Calibration.of(calibrating), Calibration.of(asked)
    confusion = confusion_matrix(asked, calibration.threshold)
    print(confusion.table(), end="\n\n")
    print(f"{len(tasks) * count} SimNets at once: {seconds:.0f} s; threshold {calibration.threshold:.3f}")
    for name, distances in (("one task", own.same), ("two tasks", own.other)):
        low, middle, high = (float(distances.quantile(q)) for q in (0.0, 0.5, 1.0))
        print(f"distances of {name}: {low:.3f} to {high:.3f}, median {middle:.3f}")
    print("accuracy:", ", ".join(f"{name} {share:.1%}" for name, share in confusion.accuracy.items()))
    right = dict.fromkeys(("known", "unknown"), 0.0)
    for t, task in enumerate(tasks):
        rest = Calibration.of({other: prints for other, prints in calibrating.items() if other != task})
        judged = confusion_matrix(asked, rest.threshold)
        right["known"] += float(judged.known[t, t] / judged.known[t].sum()) / len(tasks)
        right["unknown"] += float(judged.unknown[t, -1] / judged.unknown[t].sum()) / len(tasks)
    print("threshold from the other tasks:", ", ".join(f"{name} {share:.1%}" for name, share in right.items()))


if __name__ == "__main__":
    main()
