"""Does reciprocity help inside other people's code? Each row runs a recipe of ``examples/swap_in``, five seeds a side.

    python benchmarks/hosts.py run cleanrl         # seeds 0 to 4, plain and with kappa = .5; goes on where it stopped
    python benchmarks/hosts.py table               # the rows of docs/results.md from what was run

What a script prints last, ``return X``, goes to ``benchmarks/results/hosts.csv``. Each process has one thread.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import venvs
from benchmarks.pair import Missing
from marl.stats import t_interval

ROOT = Path(__file__).parent.parent
FILE = ROOT / "benchmarks" / "results" / "hosts.csv"
COLUMNS = ["host", "script", "seed", "return", "seconds"]
SIDES = {"plain": [], "reciprocal": ["--kappa", "0.5"]}


class Row(NamedTuple):
    """Which recipe is run, and how.

    Attributes:
        folder: under ``examples/swap_in``.
        options: of both scripts.
        venv: the virtual environment that it lives in (see ``venvs``); None: this one.
    """

    folder: str
    options: str = ""
    venv: str | None = None


ROWS = {
    "sb3-population-td3": Row("sb3_population"),
    "sb3-population-ddpg": Row("sb3_population", "--algorithm ddpg"),
    "sb3-single-td3": Row("sb3_single"),
    "cleanrl": Row("cleanrl", "--steps 4500"),
    "torchrl-ddpg": Row("torchrl_ddpg"),
    "torchrl-qmix": Row("torchrl_qmix"),
    "torchrl-ppo": Row("torchrl_ppo"),
    "pymarl-qmix": Row("pymarl", "--learner qmix"),
    "pymarl-maddpg": Row("pymarl", "--learner maddpg"),
    "benchmarl-maddpg": Row("benchmarl", venv="benchmarl"),
}


class Done(NamedTuple):
    """One run that has ended."""

    host: str
    script: str
    seed: int
    value: float
    seconds: float


def finished() -> list[Done]:
    """All that was run so far."""
    if not FILE.exists():
        return []
    with FILE.open(newline="") as file:
        return [
            Done(r["host"], r["script"], int(r["seed"]), float(r["return"]), float(r["seconds"]))
            for r in csv.DictReader(file)
        ]


def run(host: str, script: str, seed: int) -> Done:
    """Run one script to its end; raises ``RuntimeError`` with what it said if it fails."""
    row, start = ROWS[host], time.perf_counter()
    python = sys.executable if row.venv is None else venvs.python(row.venv)
    path = ROOT / "examples" / "swap_in" / row.folder / f"{script}.py"
    command = [str(python), str(path), "--seed", str(seed), *row.options.split(), *SIDES[script]]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    words = ended.stdout.split()
    if ended.returncode or words[-2:-1] != ["return"]:
        raise RuntimeError(f"{' '.join(command)} ended with code {ended.returncode}: {ended.stderr[-2000:]}")
    return Done(host, script, seed, float(words[-1]), round(time.perf_counter() - start, 1))


def due(hosts: list[str], seeds: range) -> Iterator[tuple[str, str, int]]:
    """What is not in the file yet, seed by seed, so that a row that was cut short holds whole pairs."""
    there = {(done.host, done.script, done.seed) for done in finished()}
    for host in hosts:
        for seed in seeds:
            for script in SIDES:
                if (host, script, seed) not in there:
                    yield host, script, seed


def keep(done: Done) -> None:
    """Add one run to the file."""
    new = not FILE.exists()
    with FILE.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(done)
    print(f"{done.host} {done.script} seed {done.seed}: {done.value:.2f} in {done.seconds:.0f} s", flush=True)


def table() -> None:
    """Markdown: means over the seeds that both sides have, Student's 95 % intervals, the difference paired by seed."""
    print("| host | seeds | plain | kappa = .5 | difference, paired by seed | seconds a run |")
    print("|---|---:|---|---|---|---:|")
    done = finished()
    for host in ROWS:
        of = {script: {d.seed: d for d in done if (d.host, d.script) == (host, script)} for script in SIDES}
        seeds = sorted(set.intersection(*(set(runs) for runs in of.values())))
        if len(seeds) < 2:
            continue
        plain, ours = (np.array([runs[seed].value for seed in seeds]) for runs in of.values())
        cells = []
        for sample in (plain, ours, ours - plain):
            low, high = t_interval(sample)
            cells.append(f"{sample.mean():.2f} [{low:.2f}, {high:.2f}]")
        seconds = np.median([d.seconds for runs in of.values() for d in runs.values()])
        print(f"| {host} | {len(seeds)} | {' | '.join(cells)} | {seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("hosts", nargs="*", metavar="HOST", help=f"rows: {', '.join(ROWS)}; by default all")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (default 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    given = parser.parse_args()
    for host in given.hosts:
        if host not in ROWS:
            parser.error(f"no host {host!r}; choose from {', '.join(ROWS)}")
    if given.what == "table":
        table()
        return
    todo = list(due(given.hosts or list(ROWS), range(given.seeds)))
    try:
        with ThreadPoolExecutor(given.jobs) as pool:
            for done in pool.map(lambda one: run(*one), todo):
                keep(done)
    except (Missing, RuntimeError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
