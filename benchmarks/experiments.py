"""The experiments of ``marl classic`` and ``marl lifelong``, as ``docs/results.md`` and the methods' pages report them.

    python benchmarks/experiments.py run [NAME ...]   # about three hours on two cores in all; a killed one goes on
    python benchmarks/experiments.py publish          # into benchmarks/results/ and docs/images/

Runs go to ``runs/NAME``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLASSIC_SEEDS, LIFELONG_SEEDS, ATARI_SEEDS = range(20), range(100, 110), range(100, 101)

SMALL = "lifelong small/catch,small/gates,small/paddle,small/shoot --evals 4 --eval-episodes 8"
ATARI = (
    "lifelong atari/Krull-ram,atari/Alien-ram,atari/Kangaroo-ram,atari/Frostbite-ram --agents 3"
    " --env.max-frames 18000 --dqn.hidden 128,128 --dqn.batch-size 128 --dqn.lr 5e-4"
)
ROWS = {
    "classic-pr-theorem3": "classic pr-theorem3",
    "classic-pr-digital": "classic pr-digital",
    "classic-pr-landmarks": "classic pr-landmarks",
    "classic-pr-landmarks-10": "classic pr-landmarks --agents 10",
    "classic-pr-navigation": "classic pr-navigation",
    "classic-pr-blocker": "classic pr-blocker",
    "classic-coop-lsvi": "classic coop-lsvi",
    "classic-coop-lsvi-heterogeneous": "classic coop-lsvi-heterogeneous",
    "classic-coop-lsvi-multiagent": "classic coop-lsvi-multiagent",
    "classic-distmt-lsvi": "classic distmt-lsvi",
    "classic-subsample-demand": (
        "classic subsample-demand --backup exact --ks 1,2,3,4,5,6 --network-ks 10,22 --crowd 1000000"
    ),
    "classic-subsample-frozen": "classic subsample-demand",
    "classic-subsample-queue": "classic subsample-queue",
    **{f"lifelong-{n}": f"{SMALL} --identify told --agents {n}" for n in (3, 5, 10)},
    "lifelong-ewc": f"{SMALL} --identify told --isolated --agents 1 --rehearse 0 --ewc 10 --without-ewc yes",
    "lifelong-simnet": f"{SMALL} --agents 3 --frames 40000",
    "lifelong-atari": f"{ATARI} --frames 100000 --dqn.epsilon-decay 7500 --evals 4 --eval-episodes 4",
    "lifelong-atari-longer": f"{ATARI} --frames 300000 --dqn.epsilon-decay 22500 --evals 6 --eval-episodes 8",
}


def run(name: str) -> None:
    """Start the row's run, or go on with it."""
    folder = Path("runs") / name
    words = ["resume", str(folder)]
    if not (folder / "config.json").exists():
        words = [*ROWS[name].split(), "--seeds", *map(str, _seeds(name)), "--run", str(folder)]
    subprocess.run([sys.executable, "-m", "marl.cli", *words], check=True)


def _seeds(name: str) -> range:
    if name.startswith("lifelong-atari"):
        return ATARI_SEEDS
    return LIFELONG_SEEDS if name.startswith("lifelong") else CLASSIC_SEEDS


def publish() -> None:
    """Keep the findings and the picture of every row that was run to its end, and the figures of the lifelong grid."""
    done = [name for name in ROWS if (Path("runs") / name / "findings.csv").exists()]
    for name in done:
        command, experiment, *_ = ROWS[name].split()
        picture = f"{experiment if command == 'classic' else command}.png"
        shutil.copy(Path("runs") / name / "findings.csv", ROOT / "benchmarks" / "results" / f"{name}.csv")
        shutil.copy(Path("runs") / name / picture, ROOT / "docs" / "images" / f"{name}.png")
    grid = [str(Path("runs") / name) for name in done if name.removeprefix("lifelong-").isdigit()]
    if grid:
        out = ROOT / "docs" / "images" / "lifelong-figures.png"
        subprocess.run([sys.executable, "-m", "marl.cli", "plot", *grid, "--out", str(out)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "publish"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run: {', '.join(ROWS)}; by default all")
    given = parser.parse_args()
    for name in given.names:
        if name not in ROWS:
            parser.error(f"no row {name!r}; choose from {', '.join(ROWS)}")
    if given.what == "publish":
        publish()
    else:
        for name in given.names or ROWS:
            run(name)


if __name__ == "__main__":
    main()
