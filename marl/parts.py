"""A population shared among an engine's workers: each trains some of the members, in a run folder of its own.

``RUN/parts/<k>`` is an ordinary run of the members of part k. ``RUN`` itself holds the whole recipe and, once the parts
are done or stopped, all their numbers as one ``metrics.csv``, so that it is read like any other run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import os
import secrets
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from marl import registry, teaching, transfer
from marl.checkpoint import Checkpoints
from marl.config import LoopConfig
from marl.engines import make_engine
from marl.engines.base import Engine, Gone, Worker
from marl.envs.base import EnvSpec
from marl.events import csv_text
from marl.log import COLUMNS, CSV, TENSORBOARD
from marl.loop import advance
from marl.plot import read_metrics
from marl.recipe import Recipe, explain, recipe_of
from marl.runfolder import (
    CONFIG,
    PARTS,
    explain_disk_errors,
    lock,
    new_run,
    read_config,
    read_training,
    resume_command,
    write_config,
)
from marl.session import about, begin, extended, read_recipe, reopen, set_threads
from marl.terminal import Interrupted, progress_bar, say, say_how_to_go_on, say_where, stop_requests
from marl.types import UserError

SECONDS = 1.0
"""How long a worker trains before it is asked again; a stop request waits that long."""

DEATHS = 3
"""So many workers of one part may die at the same checkpoint before the part counts as failed."""


def wanted(loop: LoopConfig) -> bool:
    """Whether a run is to be shared among workers; an address says so too: ``make_engine`` judges it."""
    return loop.engine != "local" or loop.address is not None


def names(folder: Path) -> dict[str, list[str]]:
    """The parts of a run and their members' names; empty for one that is not shared."""
    with explain(f"{folder / CONFIG} is damaged"):
        return {str(part): list(members) for part, members in read_training(folder).get("parts", {}).items()}


def folders(folder: Path) -> list[Path]:
    """Where the checkpoints of a run's members are, in their order: its parts, or itself."""
    return [folder / PARTS / part for part in names(folder)] or [folder]


def home(folder: Path, member: int) -> tuple[Path, int]:
    """The one of ``folders`` that has a member, and its number there; raises ``UserError`` for no such member."""
    total = len(recipe_of(folder).members)
    if not 0 <= member < total:
        raise UserError(f"member: expected 0 to {total - 1}, got {member}")
    for part, members in names(folder).items():
        if member < len(members):
            return folder / PARTS / part, member
        member -= len(members)
    return folder, member


def train(recipe: Recipe, folder: Path | None, command: str, progress: bool) -> Path:
    """Train a population on the engine that the recipe names.

    Args:
        recipe: the whole population's.
        folder: to make; None: one named by algorithm, environment and time.
        command: for ``config.json``.
        progress: show a bar on stderr.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once every part is saved.
        UserError: as ``marl.api.train``; a part that failed does not stop the others.
    """
    entries = registry.entries(recipe.algorithm, recipe.environment, recipe.loop.engine)
    with contextlib.closing(make_engine(recipe.loop.engine, recipe.loop.address)) as engine:
        set_threads(recipe.loop)
        shares = split([member.name for member in recipe.members], recipe.loop.workers or engine.capacity)
        spec = _try(recipe)
        folder = new_run(recipe.algorithm, recipe.environment, folder)
        with lock(folder):
            if not spec.exact_state:
                say(f"note: the state of {recipe.environment} cannot be saved; a resumed run starts new episodes")
            _link_tensorboard(folder, shares)
            identity = {"id": secrets.token_hex(8), "parts": shares}
            threads = {"threads": recipe.loop.threads or 1}  # of a worker
            write_config(folder, recipe.to_json() | about(command, spec) | threads | identity)
            _run(engine, folder, recipe, entries, progress)
    return folder


def resume(folder: Path, steps: int | None, progress: bool, address: str | None = None) -> Path:
    """Go on with every part from its newest checkpoint, on the same engine; ``steps`` is a new end."""
    recipe = read_recipe(folder)
    entries = registry.entries(recipe.algorithm, recipe.environment, recipe.loop.engine)
    address = address or recipe.loop.address
    with lock(folder), contextlib.closing(make_engine(recipe.loop.engine, address)) as engine:
        if steps is not None:
            recipe = extended(recipe, steps, max(map(_reached, folders(folder))))
            write_config(folder, {**read_config(folder), **recipe.to_json()})
        if progress:
            reached = [_reached(part) for part in folders(folder)]
            say_where(_steps(reached), min(reached) >= recipe.loop.steps)
        _run(engine, folder, recipe, entries, progress)
    return folder


def split(members: Sequence[str], workers: int) -> dict[str, list[str]]:
    """Contiguous parts as equal as possible, never an empty one."""
    count = max(min(workers, len(members)), 1)
    bounds = [len(members) * part // count for part in range(count + 1)]
    return {str(part): list(members[start:end]) for part, (start, end) in enumerate(itertools.pairwise(bounds))}


def gather(folder: Path) -> None:
    """Write the parts' numbers as one ``metrics.csv``: by step, by metric, members in order."""
    found = [read_metrics(part) for part in folders(folder) if (part / CSV).exists()]
    temporary = folder / f"{CSV}.tmp"
    with explain_disk_errors(folder, f"{CSV} was not gathered from the parts"), temporary.open("wb") as file:
        file.write(csv_text([COLUMNS]))
        for _, rows in itertools.groupby(heapq.merge(*found, key=_step), key=_step):
            metrics: dict[str, list[list[str]]] = defaultdict(list)
            for row in rows:
                metrics[row["metric"]].append(list(row.values()))
            file.write(csv_text(itertools.chain.from_iterable(metrics.values())))
    temporary.replace(folder / CSV)


def _step(row: Mapping[str, str]) -> int:
    return int(row["step"])


def _try(recipe: Recipe) -> EnvSpec:
    """Make environment and learner once, from its sources, so that what cannot be is said before there is a folder."""
    one = dataclasses.replace(recipe, members=recipe.members[:1])
    with contextlib.closing(one.make_env(copies=1)) as env:
        learner = one.make_learner(env.spec)
        transfer.start(one, learner, env.spec)
        teaching.start(one, learner, env.spec)
        return env.spec


def _link_tensorboard(folder: Path, shares: Mapping[str, Sequence[str]]) -> None:
    """``tensorboard/<member>`` is where that member's part writes."""
    with explain_disk_errors(folder, "the run was not started"):
        (folder / TENSORBOARD).mkdir(exist_ok=True)
        for part, members in shares.items():
            for name in members:
                os.symlink(Path("..") / PARTS / part / TENSORBOARD / name, folder / TENSORBOARD / name)


def _reached(part: Path) -> int:
    """The step that a part would go on from."""
    return Checkpoints.of(part).newest() or 0


def _steps(steps: Sequence[int]) -> str:
    low, high = min(steps), max(steps)
    return f"step {low}" if low == high else f"steps {low} to {high}"


class _Task:
    """A part in the hands of a worker, as the driver sees it."""

    def __init__(self, part: str, worker: Worker) -> None:
        self.part, self.worker = part, worker
        self.ask(stop=False)

    def ask(self, stop: bool) -> None:
        self.call = self.worker.call("advance", stop)


def _run(engine: Engine, folder: Path, recipe: Recipe, entries: tuple[str, str], progress: bool) -> None:
    """Bring every part to its end, as many at a time as the engine has room for; then gather their numbers.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once every part is saved.
        UserError, RuntimeError: what the first part that failed said; the others are done.
    """
    shares = names(folder)
    about_run = str(folder.resolve()), read_config(folder)["id"]
    waiting, tasks, unfinished = list(shares), list[_Task](), set(shares)
    deaths: dict[str, list[int]] = defaultdict(list)
    failures: dict[str, Exception] = {}
    with say_how_to_go_on(folder), _Show(folder, recipe, progress) as show, stop_requests() as stop:
        while tasks or (waiting and not stop):
            while waiting and not stop and len(tasks) < max(engine.capacity, 1):
                part = waiting.pop(0)
                tasks.append(_Task(part, engine.place(Part, *about_run, part, entries)))
            over = engine.wait([task.call for task in tasks], 0.1)
            for task in [task for task in tasks if task.call in over]:
                part, label = task.part, f"part {task.part} ({_span(shares[task.part])})"
                try:
                    report = task.call.result()
                except Gone as gone:
                    step = _reached(folder / PARTS / part)
                    deaths[part].append(step)
                    if deaths[part][-DEATHS:] == [step] * DEATHS:
                        failures[part] = UserError(f"{label}: {gone}; {DEATHS} workers have died at step {step}")
                    else:
                        say(f"{label}: {gone}" + ("" if stop else f"; another worker goes on from step {step}"))
                        waiting.append(part)
                except (UserError, RuntimeError) as error:
                    failures[part] = type(error)(f"{label}: {error}")
                else:
                    show(part, report)
                    if report.state == "going":
                        task.ask(stop=bool(stop))
                        continue
                    if report.state == "finished":
                        unfinished.remove(part)
                if part in failures and (tasks[1:] or waiting):
                    say(f"{failures[part]}; the other parts go on")
                tasks.remove(task)
                task.worker.kill()
        gather(folder)
        if failures:
            first = failures[min(failures)]
            raise type(first)(f"{first}; to go on with what is saved: {resume_command(folder)}")
        if unfinished:
            raise Interrupted(f"stopped at {_steps([_reached(part) for part in folders(folder)])}, everything saved")


def _span(members: Sequence[str]) -> str:
    return members[0] if len(members) == 1 else f"{members[0]} to {members[-1]}"


class _Show:
    """The progress bar of all parts together, closed by its ``with`` block."""

    def __init__(self, folder: Path, recipe: Recipe, visible: bool) -> None:
        copies = recipe.loop.copies
        self.sizes = {part: len(members) for part, members in names(folder).items()}
        self.steps = {part: _reached(folder / PARTS / part) for part in self.sizes}
        self.reports: dict[str, Report] = {}
        self.said: set[str] = set()
        total = len(self.sizes) * -(-recipe.loop.steps // copies) * copies  # whole steps of all copies
        self.bar = progress_bar(total, sum(self.steps.values()), "step", visible)

    def __enter__(self) -> _Show:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, part: str, report: Report) -> None:
        """Take in what a worker said; each line is said once."""
        self.steps[part], self.reports[part] = report.step, report
        for line in report.notes:
            if line not in self.said:
                say(line)
            self.said.add(line)
        self.bar.update(sum(self.steps.values()) - self.bar.n)
        shown = {f"{kind}/s": f"{sum(values):.0f}" for kind, values in self._each("rates").items()}
        for kind in self._each("returns"):
            holders = {part: r.returns[kind] for part, r in self.reports.items() if kind in r.returns}
            total = sum(self.sizes[part] for part in holders)
            shown[kind] = f"{sum(self.sizes[part] * value for part, value in holders.items()) / total:.2f}"
        self.bar.set_postfix(shown, refresh=False)

    def _each(self, what: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for report in self.reports.values():
            for kind, value in getattr(report, what).items():
                found[kind].append(value)
        return found


# ---- in the process of a worker -----------------------------------------------------------------------------------


class Report(NamedTuple):
    """What a worker has to say of its part.

    Attributes:
        step: environment steps per member so far.
        state: ``going``, ``stopped`` or ``finished``; all is saved but in the first.
        notes: lines that the user should know.
        rates: units of work per second by kind, at the last row of the log.
        returns: the newest mean returns of its members, of training and of evaluation.
    """

    step: int
    state: str
    notes: list[str]
    rates: dict[str, float]
    returns: dict[str, float]


class Part:
    """Trains one part of a run, from its newest checkpoint where it has one.

    Args:
        run: the whole run's folder, which this machine has to see as well.
        identity: what tells it from another folder of the same name.
        part: name of the part.
        entries: where algorithm and environment family are, for those that only the caller's process registered.
    """

    def __init__(self, run: str, identity: str, part: str, entries: tuple[str, str]) -> None:
        self.step = 0
        self.stop: list[bool] = []
        self.notes: list[str] = []
        self.rates: dict[str, float] = {}
        self.returns: dict[str, float] = {}
        self.loop = self._train(Path(run), identity, part, entries)

    def advance(self, stop: bool) -> Report:
        """Train for about ``SECONDS``; or one step more, and save.

        Raises:
            UserError: this machine does not see the folder; or as ``marl.session.begin``, ``reopen`` and ``marl.loop``.
        """
        if stop:
            self.stop.append(True)
        end = time.monotonic() + SECONDS
        try:
            for rates, news in self.loop:
                self.rates |= rates
                returns = {name: value for name, value in news.items() if name.endswith("return_mean")}
                self.returns |= {name.split("/")[0]: value.mean().item() for name, value in returns.items()}
                if time.monotonic() > end and not stop:
                    return self._report("going")
        except Interrupted:
            return self._report("stopped")
        return self._report("finished")

    def _report(self, state: str) -> Report:
        notes, self.notes[:] = list(self.notes), []
        return Report(self.step, state, notes, self.rates, self.returns)

    def _train(
        self, folder: Path, identity: str, part: str, entries: tuple[str, str]
    ) -> Iterator[tuple[dict[str, float], dict[str, Tensor]]]:
        """What ``marl.loop.advance`` yields; the part's folder is open, and locked, from the first step to the last."""
        recipe = _recipe_of_part(folder, identity, part, entries)
        place, note = folder / PARTS / part, self.notes.append
        if (place / CONFIG).exists():
            steps = recipe.loop.steps
            opened = reopen(place, steps if steps != read_recipe(place).loop.steps else None, note)
        else:
            opened = begin(recipe, lambda: _emptied(place), read_config(folder)["command"], note)
        with opened as (_, training, checkpoints, evaluator):
            self.step = training.steps
            for progress in advance(training, checkpoints, evaluator, note, self.stop):
                self.step = training.steps
                yield progress


def _recipe_of_part(folder: Path, identity: str, part: str, entries: tuple[str, str]) -> Recipe:
    """The run's recipe with this part's members only, which train in this process."""
    try:
        config = read_training(folder)
    except UserError:
        config = {}
    if config.get("id") != identity:
        where = f"{folder} on {socket.gethostname()} is not this run's folder"
        raise UserError(f"{where}; every node has to see it under the same path, on a shared disk for example")
    registry.ALGORITHMS.setdefault(config["algorithm"], entries[0])
    registry.ENVIRONMENTS.setdefault(config["environment"].partition("/")[0], entries[1])
    whole = Recipe.from_json(config)
    loop = dataclasses.replace(whole.loop, engine="local", address=None, workers=0)
    members = [member for member in whole.members if member.name in config["parts"][part]]
    return dataclasses.replace(whole, loop=loop, members=members)


def _emptied(place: Path) -> Path:
    """A folder without what a worker left there that died before its part was a run."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place
