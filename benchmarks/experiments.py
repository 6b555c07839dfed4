"""The experiments of ``marl classic`` with 20 seeds each, as ``docs/results.md`` and the methods' pages report them.

    python benchmarks/experiments.py run [NAME ...]   # about an hour on two cores in all; a killed one goes on
    python benchmarks/experiments.py publish          # into benchmarks/results/ and docs/images/

Runs go to ``runs/classic-NAME``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEEDS = ["--seeds", *map(str, range(20))]
ROWS = {
    "pr-theorem3": "pr-theorem3",
    "pr-digital": "pr-digital",
    "pr-landmarks": "pr-landmarks",
    "pr-landmarks-10": "pr-landmarks --agents 10",
    "pr-navigation": "pr-navigation",
    "pr-blocker": "pr-blocker",
    "coop-lsvi": "coop-lsvi",
    "coop-lsvi-heterogeneous": "coop-lsvi-heterogeneous",
    "coop-lsvi-multiagent": "coop-lsvi-multiagent",
    "distmt-lsvi": "distmt-lsvi",
    "subsample-demand": "subsample-demand --backup exact --ks 1,2,3,4,5,6 --network-ks 10,22 --crowd 1000000",
    "subsample-frozen": "subsample-demand",
    "subsample-queue": "subsample-queue",
}


def folder(name: str) -> Path:
    """Where the row's run lies."""
    return Path("runs") / f"classic-{name}"


def run(name: str) -> None:
    """Start the row's run, or go on with it."""
    experiment, *options = ROWS[name].split()
    begun = (folder(name) / "config.json").exists()
    words = ["resume", str(folder(name))]
    if not begun:
        words = ["classic", experiment, *options, *SEEDS, "--run", str(folder(name))]
    subprocess.run([sys.executable, "-m", "marl.cli", *words], check=True)


def publish() -> None:
    """Keep the findings and the picture of every row that was run to its end."""
    for name, command in ROWS.items():
        if (folder(name) / "findings.csv").exists():
            shutil.copy(folder(name) / "findings.csv", ROOT / "benchmarks" / "results" / f"classic-{name}.csv")
            picture = folder(name) / f"{command.split()[0]}.png"
            shutil.copy(picture, ROOT / "docs" / "images" / f"classic-{name}.png")


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
