"""Runs an experiment: one process for several seeds at a time, checkpoints, stop requests, and what comes out.

Every seed is run by itself from its own checkpoint, so that the numbers do not depend on how many processes there are,
nor on how often the run was stopped or killed.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from marl.classic.experiments.base import Experiment, Housed
from marl.classic.results import SEEDS, SeedLog
from marl.classic.storage import load_state, save_state
from marl.processes import die_with_parent, how_it_ended, quiet_start, start
from marl.runfolder import explain_disk_errors
from marl.terminal import Interrupted, stop_requests
from marl.types import State, UserError

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints of a seed."""

STOP = None
"""What the parent sends instead of a seed."""


def run(
    experiment: type[Experiment],
    options: Any,
    seeds: Sequence[int],
    folder: Path,
    workers: int,
    show: Callable[[int, int, int], None],
) -> None:
    """Bring every seed to its end, from its checkpoint where it has one.

    A seed that fails does not stop the others.

    Args:
        experiment: a class that a new process can import.
        options: an instance of its ``Options``.
        seeds: which to run.
        folder: the run's, locked by the caller.
        workers: processes at a time.
        show: called with a seed, the work done and the work to do; first as the seed is taken up.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once every seed is saved.
        UserError: a seed failed, or its process died; the others are done.
    """
    job = (experiment, options, folder, CHECKPOINT_SECONDS)
    waiting, failures = list(seeds), dict[int, str]()
    said: set[str] = set()
    team: list[_Worker] = []
    with stop_requests() as stop:
        try:
            while True:
                if not stop and waiting and len(team) < workers:
                    team.append(_Worker(job, waiting.pop(0)))
                    continue
                if not team:
                    break
                for worker in _ready(team):
                    kind, news = worker.receive()
                    if kind == "progress":
                        show(worker.seed, *news)
                    elif kind == "note" and news not in said:
                        said.add(news)
                        logging.getLogger("marl").warning(news)
                    elif kind == "failed":
                        failures[worker.seed] = news
                    if kind in ("finished", "failed") and worker.alive and waiting and not stop:
                        worker.begin(waiting.pop(0))
                    elif kind in ("finished", "failed", "stopped"):
                        team.remove(worker)
                        worker.end()
                if stop:
                    for worker in team:
                        worker.ask_to_stop()
        finally:
            for worker in team:
                worker.kill()
    if failures:
        seed, reason = min(failures.items())
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise UserError(f"seed {seed}{others}: {reason}; to go on with what is saved: marl resume {folder}")
    if stop:
        raise Interrupted("stopped, everything saved")


def run_in_turn(
    experiment: type[Experiment],
    options: Any,
    seeds: Sequence[int],
    folder: Path,
    show: Callable[[int, int, int], None],
) -> None:
    """As ``run``, but one seed after another in this process, up to the first that fails."""
    with stop_requests() as stop:
        for seed in seeds:
            finished = run_seed(
                experiment(options, seed),
                seed,
                folder,
                CHECKPOINT_SECONDS,
                show=lambda done, total, seed=seed: show(seed, done, total),  # type: ignore[misc]
                asked_to_stop=lambda: bool(stop),
            )
            if not finished:
                raise Interrupted("stopped, everything saved")


class _Worker:
    """A process that runs one seed after another, as the parent sees it."""

    def __init__(self, job: tuple[Any, ...], seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, *job))  # no daemon: those may not start processes
        with quiet_start():
            start(self.process)
        there.close()  # so that the end of the process is the end of the pipe
        self.alive = True
        self.asked = False
        self.begin(seed)

    def begin(self, seed: int) -> None:
        self.seed = seed
        self._send(seed)

    def receive(self) -> tuple[str, Any]:
        """What the process has to say, or that it died."""
        try:
            kind, news = self.connection.recv()
            return kind, news
        except (EOFError, OSError):
            self.alive = False
            return "failed", f"its process {how_it_ended(self.process)}"

    def ask_to_stop(self) -> None:
        if not self.asked:
            self._send(STOP)
        self.asked = True

    def end(self) -> None:
        """Let go of a process that has nothing to do."""
        self._send(STOP)
        self.connection.close()
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def _send(self, what: int | None) -> None:
        with contextlib.suppress(OSError):  # that a process died shows in ``receive``
            self.connection.send(what)


def _ready(team: Sequence[_Worker]) -> list[_Worker]:
    """Those with news; none if there were none for a while, so that stop requests are seen."""
    found = connection.wait([worker.connection for worker in team], timeout=0.1)
    return [worker for worker in team if worker.connection in found]


# ---- in the process of a worker -----------------------------------------------------------------------------------


def _serve(parent: Connection, experiment: type[Experiment], options: Any, folder: Path, seconds: float) -> None:
    """The life of a worker process: run the seeds that the parent names until it says stop or is gone."""
    die_with_parent()
    logging.getLogger("marl").addHandler(_Notes(parent))
    logging.getLogger("marl").propagate = False
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (seed := parent.recv()) is not STOP:
            errors = folder / SEEDS / f"{seed}.error.txt"
            try:
                errors.unlink(missing_ok=True)
                finished = run_seed(
                    experiment(options, seed),
                    seed,
                    folder,
                    seconds,
                    show=lambda done, total: parent.send(("progress", (done, total))),
                    asked_to_stop=parent.poll,
                )
                parent.send(("finished" if finished else "stopped", None))
            except UserError as error:
                parent.send(("failed", str(error)))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                with contextlib.suppress(OSError):
                    errors.parent.mkdir(exist_ok=True)
                    errors.write_text(traceback.format_exc())
                    reason += f" (where: {errors})"
                parent.send(("failed", reason))


def run_seed(
    experiment: Experiment,
    seed: int,
    folder: Path,
    seconds: float,
    show: Callable[[int, int], None],
    asked_to_stop: Callable[[], bool],
) -> bool:
    """Advance one seed from its checkpoint to its end, saved every so many seconds and at the end.

    Args:
        experiment: as it was made.
        seed: its seed.
        folder: the run's.
        seconds: between checkpoints.
        show: called with the work done and the work to do.
        asked_to_stop: asked after each ``advance``.

    Returns:
        Whether it reached its end; False where it was asked to stop, and saved.
    """
    path = folder / SEEDS / f"{seed}.npz"
    if isinstance(experiment, Housed):
        experiment.house(folder / SEEDS / str(seed))
    log = _go_on(experiment, seed, folder, path)

    def save() -> None:
        size, checksum = log.sync()
        state = {"seed": seed, "csv_bytes": size, "csv_checksum": checksum, "experiment": experiment.state_dict()}
        with explain_disk_errors(path.parent, f"the checkpoint of seed {seed} was not written; the last one is kept"):
            save_state(path, state)

    with contextlib.closing(log):
        show(experiment.done, experiment.total)
        saved = time.monotonic()
        while experiment.done < experiment.total:
            log.write(experiment.advance())
            show(experiment.done, experiment.total)
            stopping = asked_to_stop()
            if stopping or time.monotonic() - saved > seconds:
                save()
                saved = time.monotonic()
            if stopping:
                return False
        save()
    return True


def _go_on(experiment: Experiment, seed: int, folder: Path, path: Path) -> SeedLog:
    """Bring the experiment to its checkpoint, and open its log there; where there is none that can be used, anew."""
    if path.exists():
        try:
            state: State = load_state(path)
            size, checksum = state["csv_bytes"], state.get("csv_checksum")  # an older version kept no checksum
            log = SeedLog(folder, seed, experiment.metrics, size, checksum)
        except UserError as error:
            logging.getLogger("marl").warning("%s; seed %d begins anew, to the same numbers", error, seed)
        else:
            experiment.load_state_dict(state["experiment"])
            return log
    return SeedLog(folder, seed, experiment.metrics)


class _Notes(logging.Handler):
    """Hands warnings to the parent, who says each once."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        self.parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            self.parent.send(("note", record.getMessage()))
