"""Does it learn, and does reciprocity help? Each row trains five seeds with kappa = 0 and five with kappa = .5 at once.

    python benchmarks/learning.py run spread       # about an hour on two quiet cores; a killed one goes on
    python benchmarks/learning.py table            # the rows of docs/results.md from what was run
    python benchmarks/learning.py publish          # its pictures, and every evaluation as benchmarks/results/NAME.csv

Runs go to ``runs/learning-NAME``. Evaluation is deterministic, on environments of its own, the same episodes for all.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marl.plot import plot, read_metrics
from marl.runfolder import read_config
from marl.stats import t_interval

ROOT = Path(__file__).parent.parent
RETURN, WIN_RATE = "eval/return_mean", "eval/win_rate"


class Row(NamedTuple):
    """One comparison: what ``marl train`` is told, and which of its metrics is reported."""

    command: str
    metric: str = RETURN


COMMON = "--seeds 0 1 2 3 4 --sweep reciprocity.kappa=0,.5 --threads 1"
MPE = (
    "--copies 16 --update-every 4 --eval-every 16000 --eval-episodes 100 --checkpoint-every 32000 --buffer-size 200000"
)
HOPPER = "--agents 3 --warmup 5000 --eval-every 2500 --eval-episodes 5 --checkpoint-every 1000 --buffer-size 20000"
INDEX = "mpe/simple_spread_v3 --env.continuous no --eval-episodes 100"
ROWS = {
    "spread": Row(f"maddpg mpe/simple_spread_v3 --steps 128000 {MPE} {COMMON}"),
    "tag": Row(f"maddpg mpe/simple_tag_v3 --agents 3 --steps 128000 {MPE} {COMMON}"),
    "hopper": Row(f"td3 mujoco/Hopper-v5 --steps 17500 {HOPPER} {COMMON}"),
    "spread-mappo": Row(
        f"mappo {INDEX} --steps 1600000 --shared no --copies 128 --rollout 25 --actor-lr 7e-4 --critic-lr 7e-4 "
        f"--eval-every 160000 --checkpoint-every 160000 {COMMON}"
    ),
    "spread-qmix": Row(
        f"qmix {INDEX} --steps 200000 --copies 32 --update-every 50 --lr 1e-3 --td-lambda 0.6 --limit-is-end yes "
        f"--eval-every 25000 --checkpoint-every 25000 {COMMON}"
    ),
    "assigned-maptf": Row(f"maptf mpe/spread_assigned --steps 96000 {MPE} {COMMON}"),
    "assigned-dvm": Row(f"dvm mpe/spread_assigned --steps 64000 {MPE} {COMMON}"),
    "spread-dvm": Row(f"dvm mpe/simple_spread_v3 --steps 64000 {MPE} {COMMON}"),
    "stalkers": Row(
        "qmix smax/3s_vs_5z --steps 2000000 --copies 32 --update-every 200 --lr 1e-3 --td-lambda 0.6 "
        "--limit-is-end yes --epsilon-steps 100000 --eval-every 100000 --eval-episodes 32 --checkpoint-every 200000 "
        f"{COMMON} --engine processes --workers 2",
        WIN_RATE,
    ),
    "battle": Row(
        "qmix smax/3m --env.max-steps 50 --steps 300000 --copies 32 --update-every 200 --lr 1e-3 --td-lambda 0.6 "
        f"--eval-every 25000 --eval-episodes 64 --checkpoint-every 25000 {COMMON}",
        WIN_RATE,
    ),
}


def folder(name: str) -> Path:
    """Where the row's run lies."""
    return Path("runs") / f"learning-{name}"


def run(name: str) -> None:
    """Start the row's run, or go on with it; the seconds it took are added up in ``wall.json``."""
    start, path = time.perf_counter(), folder(name)
    begun = (path / "config.json").exists()
    words = ROWS[name].command.split()
    steps = words[words.index("--steps") + 1]
    words = ["resume", str(path), "--steps", steps] if begun else ["train", *words, "--run", str(path)]
    code = subprocess.run([sys.executable, "-m", "marl.cli", *words]).returncode
    clock = path / "wall.json"
    before = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    clock.write_text(json.dumps({"seconds": before + time.perf_counter() - start}))
    if code:
        raise SystemExit(code)


def evaluations(name: str) -> list[dict[str, str]]:
    """The row's metric of each member at each evaluation."""
    return [r for r in read_metrics(folder(name)) if r["metric"] == ROWS[name].metric and not r["agent"]]


def final_values(name: str) -> tuple[int, dict[float, np.ndarray]]:
    """Step of the last evaluation, and what each kappa's members reached there, by seed."""
    path, rows = folder(name), evaluations(name)
    step = max(int(r["step"]) for r in rows)
    last = {r["member"]: float(r["value"]) for r in rows if int(r["step"]) == step}
    values = defaultdict(list)
    for member in read_config(path)["members"]:
        values[member["sweep"]["reciprocity.kappa"]].append(last[member["name"]])
    return step, {kappa: np.array(v) for kappa, v in values.items()}


def table() -> None:
    """Markdown: means over seeds with Student's 95 % intervals, and the paired difference between the two kappas."""
    print("| row | steps per member | kappa = 0 | kappa = .5 | difference, paired by seed | wall time |")
    print("|---|---|---|---|---|---|")
    for name in ROWS:
        path = folder(name)
        if not path.exists():
            continue
        step, values = final_values(name)
        cells = []
        for sample in (values[0.0], values[0.5], values[0.5] - values[0.0]):
            low, high = t_interval(sample)
            cells.append(f"{sample.mean():.2f} [{low:.2f}, {high:.2f}]")
        clock = path / "wall.json"
        minutes = f"{json.loads(clock.read_text())['seconds'] / 60:.0f} min" if clock.exists() else ""
        print(f"| {name} | {step} | {' | '.join(cells)} | {minutes} |")


def publish() -> None:
    """Keep what the documentation shows: a picture and the evaluations of each row that was run."""
    for name in ROWS:
        if folder(name).exists():
            plot([folder(name)], ROOT / "docs" / "images" / f"learning-{name}.png", ROWS[name].metric)
            rows = evaluations(name)
            with (ROOT / "benchmarks" / "results" / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["step", "member", "metric", "unit", "value"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "publish"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run: {', '.join(ROWS)}; by default all")
    given = parser.parse_args()
    for name in given.names:
        if name not in ROWS:
            parser.error(f"no row {name!r}; choose from {', '.join(ROWS)}")
    if given.what == "table":
        table()
    elif given.what == "publish":
        publish()
    else:
        for name in given.names or ROWS:
            run(name)


if __name__ == "__main__":
    main()
