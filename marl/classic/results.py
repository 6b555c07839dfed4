"""What an experiment measured: each seed's own CSV and TensorBoard run, then one table, its findings."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marl import config as cfg
from marl.classic.experiments import experiment
from marl.classic.experiments.base import Array, Curves, Experiment, Finding, Metric, Row, Table, Uneven
from marl.events import EventFile, csv_text
from marl.runfolder import CONFIG, explain_disk_errors, read_config, write_atomically
from marl.stats import t_interval
from marl.types import UserError

COLUMNS = ("seed", "series", "metric", "unit", "x", "value")
"""The columns of ``results.csv`` and of each seed's own file."""

FORMAT = 1
"""Of ``config.json``."""

RESULTS = "results.csv"
FINDINGS = "findings.csv"
TENSORBOARD = "tensorboard"
SEEDS = "seeds"
"""The folder of what each seed saved."""


class Summary(NamedTuple):
    """A finding over its seeds.

    Attributes:
        name: what it is.
        mean: over the seeds.
        low, high: Student's 95 % interval of the mean; nan for a single seed.
        unit: of the last three.
        seeds: how many.
    """

    name: str
    mean: float
    low: float
    high: float
    unit: str
    seeds: int


class Run(NamedTuple):
    """What ``config.json`` says of an experiment's run.

    Attributes:
        name: the experiment's.
        kind: its class.
        options: an instance of ``kind.Options``.
        seeds: as they were asked for.
        command: what made it.
    """

    name: str
    kind: type[Experiment]
    options: Any
    seeds: list[int]
    command: str


def read_run(folder: Path) -> Run:
    """The run in ``folder``; raises ``UserError`` for a damaged ``config.json`` or one of another version."""
    config = read_config(folder)
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG}: expected format {FORMAT}, got {config.get('format')!r}")
    try:
        name, seeds = str(config["experiment"]), [int(seed) for seed in config["seeds"]]
        kind = experiment(name)
        options: Any = cfg.from_json(kind.Options, config["options"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is damaged: {' '.join(repr(error).split())}") from None
    cfg.check_ranges(options)
    check_seeds(seeds)
    return Run(name, kind, options, seeds, str(config.get("command", "")))


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ``UserError`` for seeds that are none."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds: expected different numbers from 0 on, got {' '.join(map(str, seeds)) or 'none'}")


class SeedLog:
    """Writes one seed's rows, in order, to ``seeds/<seed>.csv`` and to TensorBoard.

    Args:
        folder: the run's.
        seed: whose rows.
        metrics: name -> what it means.
        size: bytes of the CSV that stay, the rest is forgotten; 0: begin anew.
        checksum: of these bytes, as ``sync`` gave it; None: not known.

    Raises:
        UserError: (every method) the disk is full or cannot be written to; the file lacks some of its ``size`` bytes,
            or they are not those that were written.
    """

    def __init__(
        self, folder: Path, seed: int, metrics: Mapping[str, Metric], size: int = 0, checksum: str | None = None
    ) -> None:
        self._folder, self._seed, self._metrics = folder, seed, metrics
        self._path = seed_csv(folder, seed)
        self._events: dict[str, EventFile] = {}
        self._steps: dict[tuple[str, str], int] = {}
        with self._disk():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._csv = self._path.open("a+b")
            if self._csv.seek(0, os.SEEK_END) < size:
                raise UserError(f"{self._path} lacks rows of its past")
            self._csv.truncate(size)
            if checksum not in (None, self._checksum()):
                raise UserError(f"{self._path} fails its checksum")
            if size == 0:
                self._csv.write(csv_text([COLUMNS]))
            self._csv.flush()
            try:
                past = [row for _, row in _read(self._path)]
            except ValueError:
                raise UserError(f"{self._path} is damaged") from None
            # Steps need not rise from row to row, so that TensorBoard cannot be told from where on to forget.
            for old in (folder / TENSORBOARD).glob(f"*/seed={seed}"):
                shutil.rmtree(old)
            self._show(past)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and let readers see them."""
        with self._disk():
            self._csv.write(csv_text(self._line(row) for row in rows))
            self._csv.flush()
            self._show(rows)

    def sync(self) -> tuple[int, str]:
        """Have everything on the disk; how many bytes the CSV has, and their checksum."""
        with self._disk():
            os.fsync(self._csv.fileno())
            return os.fstat(self._csv.fileno()).st_size, self._checksum()

    def close(self) -> None:
        with self._disk():
            self._csv.close()
            for file in self._events.values():
                file.close()

    def _checksum(self) -> str:
        return hashlib.blake2b(self._path.read_bytes(), digest_size=16).hexdigest()

    def _line(self, row: Row) -> tuple[Any, ...]:
        x = float(row.x)
        whole = int(x) if x.is_integer() else x
        return self._seed, row.series, row.metric, self._metrics[row.metric].unit, whole, float(row.value)

    def _show(self, rows: Iterable[Row]) -> None:
        """TensorBoard counts in whole steps: x rounded, but always beyond the curve's last step."""
        for row in rows:
            curve = (row.series, row.metric)
            self._steps[curve] = max(round(row.x), self._steps.get(curve, -1) + 1)
            tag = f"{row.metric} [{self._metrics[row.metric].unit}]"
            self._file(row.series).scalar(self._steps[curve], tag, float(row.value))
        for file in self._events.values():
            file.flush()

    def _file(self, series: str) -> EventFile:
        name = series.replace("/", "-")
        if name not in self._events:
            self._events[name] = EventFile(self._folder / TENSORBOARD / name / f"seed={self._seed}", purge=None)
        return self._events[name]

    def _disk(self) -> Any:
        return explain_disk_errors(self._folder, f"the last rows of seed {self._seed} were not recorded")


def seed_csv(folder: Path, seed: int) -> Path:
    """The rows of one seed."""
    return folder / SEEDS / f"{seed}.csv"


def merge(folder: Path, seeds: Sequence[int]) -> None:
    """Make ``results.csv`` of the seeds' files, in ascending order of the seeds."""
    with explain_disk_errors(folder, f"{RESULTS} was not written"):
        write_atomically(folder / RESULTS, _merged(folder, seeds))


def _merged(folder: Path, seeds: Sequence[int]) -> bytes:
    head = csv_text([COLUMNS])
    return head + b"".join(seed_csv(folder, seed).read_bytes().removeprefix(head) for seed in sorted(seeds))


def read_results(folder: Path) -> Curves:
    """The curves in ``results.csv``.

    Raises:
        UserError: the file is damaged, or does not have the rows of the seeds' files, where these are still there.
    """
    points: dict[tuple[str, str], dict[int, list[Row]]] = {}
    try:
        for seed, row in _read(folder / RESULTS):
            points.setdefault((row.series, row.metric), {}).setdefault(seed, []).append(row)
        seeds = [int(path.stem) for path in (folder / SEEDS).glob("*.csv") if path.stem.isdecimal()]
        if seeds and _places((folder / RESULTS).read_bytes()) != _places(_merged(folder, seeds)):
            raise ValueError("rows were lost, or added, or are of another curve")
    except ValueError:
        raise UserError(f"{folder / RESULTS} is damaged; delete it, and marl resume {folder} makes it again") from None
    return {
        curve: {
            seed: (np.array([row.x for row in rows]), np.array([row.value for row in rows]))
            for seed, rows in sorted(of_seeds.items())
        }
        for curve, of_seeds in points.items()
    }


def _places(table: bytes) -> list[bytes]:
    """Each line without its value, which is its last column."""
    return [line.rpartition(b",")[0] for line in table.split(b"\n")]


def summarise(
    experiment: type[Experiment], options: Any, curves: Curves, seeds: Sequence[int], folder: Path
) -> list[Summary]:
    """The experiment's findings over the seeds, also written to ``findings.csv``."""
    found = [*experiment.findings(shared(curves, seeds), options)]
    if issubclass(experiment, Uneven):
        found += experiment.uneven_findings(curves, options)
    rows = [_summary(finding) for finding in found]
    with explain_disk_errors(folder, f"{FINDINGS} was not written"):
        write_atomically(folder / FINDINGS, csv_text([Summary._fields, *rows]))
    return rows


def shared(curves: Curves, seeds: Sequence[int]) -> Table:
    """The curves that every seed has, with the same x: values ``[n, T]``, seeds in ascending order."""
    table: dict[tuple[str, str], tuple[Array, Array]] = {}
    for curve, of_seeds in curves.items():
        xs = [x for x, _ in of_seeds.values()]
        if set(of_seeds) == set(seeds) and all(np.array_equal(x, xs[0]) for x in xs):
            table[curve] = xs[0], np.stack([of_seeds[seed][1] for seed in sorted(seeds)])
    return table


def _summary(finding: Finding) -> Summary:
    values = np.asarray(finding.values, dtype=np.float64)
    low, high = t_interval(values)
    return Summary(finding.name, float(values.mean()), float(low), float(high), finding.unit, len(values))


def _read(path: Path) -> Iterator[tuple[int, Row]]:
    """Seeds and rows of a CSV; raises ``ValueError`` for one that is not ours."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        try:
            if tuple(next(lines, ())) != COLUMNS:
                raise ValueError(f"{path} does not begin with its columns")
            for seed, series, metric, _, x, value in lines:
                yield int(seed), Row(series, metric, float(x), float(value))
        except csv.Error as error:
            raise ValueError(f"{path}: {error}") from error
