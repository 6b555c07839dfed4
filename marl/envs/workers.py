"""Copies of foreign environments in worker processes; one that dies or hangs is replaced and training goes on."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

from marl.envs.base import EnvSpec
from marl.envs.copies import Build, CopiesEnv, Dead, LocalPool, Moment, Pool, Sight, copy_seeds
from marl.pickling import dumps
from marl.processes import signals_held, start
from marl.streams import derive
from marl.types import State, UserError

START_TIMEOUT = 300.0
"""Seconds that a new process may take to import its libraries and build its copies on a busy machine."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a worker may take to close its copies before it is killed."""


def make_copies(
    build: Build, *, seeds: Sequence[int], copies: int, learners: int = 1, workers: int = 0, timeout: float = 60.0
) -> CopiesEnv:
    """P members x G learners x E copies of what ``build`` makes.

    Args:
        build: makes one copy from its seed; it must pickle if ``workers`` is positive.
        seeds: one per member (P).
        copies: E.
        learners: G, learners that each live in copies of their own; more than one only in a task of one agent.
        workers: processes that share the copies; 0: this process.
        timeout: seconds after which a worker that does not answer is taken for hung.
    """
    each = copy_seeds(seeds, copies, learners)
    pool: Pool = WorkerPool(build, each, workers, timeout) if workers else LocalPool(build, each)
    return CopiesEnv(pool, members=len(seeds), copies=copies, learners=learners)


class Lost(Exception):
    """A worker process died or hung; the message says which."""


class Worker:
    """A process that holds a ``LocalPool`` and answers calls of its methods."""

    def __init__(self, build: Build, seeds: Sequence[int]) -> None:
        here, there = _CONTEXT.Pipe()
        self.connection = here
        self.process = _CONTEXT.Process(target=_serve, args=(there, dumps((build, list(seeds)))), daemon=True)
        try:
            # The fork server has no handler of its own before it has torch. What is there is closed here, so that the
            # end of the process is the end of the pipe.
            with there, signals_held(signal.SIGINT):
                start(self.process)
        except BaseException:  # Ctrl-C: at its end this process would wait for a worker that nobody tells to stop
            self.stop()
            raise

    def send(self, method: str, *arguments: Any) -> None:
        """Ask; the answer is fetched by ``receive``. What a dead worker cannot take shows there."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(dumps((method, arguments)))

    def receive(self, timeout: float) -> Any:
        """The answer to the last ``send``, waited for ``timeout`` seconds.

        Raises:
            Lost: if the process is dead or silent.
            UserError, RuntimeError: what the environment itself raised.
        """
        try:
            if not self.connection.poll(timeout):
                raise Lost("gave no answer in time")
            kind, answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise Lost("died") from None
        if kind == "user":
            raise UserError(answer)
        if kind == "error":
            raise RuntimeError(f"an environment failed in its worker process\n{answer}")
        return answer

    def stop(self) -> None:
        """End the process, if it began, and those that it started, such as a game's."""
        self.connection.close()
        pid = self.process.pid
        if pid is None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):  # all gone, or not yet a group of its own
                os.killpg(pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


class WorkerPool:
    """K copies shared by worker processes; answers what ``LocalPool`` answers, to the bit.

    Where a worker is lost its copies are built again, with seeds derived from their own and from how often that
    happened, and their transition is marked as lost.

    Args:
        build: makes one copy from its seed; it must pickle.
        seeds: one per copy.
        workers: how many processes; no more than copies are started.
        timeout: seconds after which a worker that does not answer is taken for hung.
    """

    def __init__(self, build: Build, seeds: Sequence[int], workers: int, timeout: float = 60.0) -> None:
        self.build = build
        self.seeds = list(seeds)
        self.timeout = timeout
        self.restarts = np.zeros(len(seeds), np.int64)
        edges = np.linspace(0, len(seeds), min(workers, len(seeds)) + 1).astype(int)
        self.slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        self.workers: list[Worker] = []
        self._events: list[str] = []
        self._close = Finalize(self, _close, (self.workers,), exitpriority=0)  # also at the end of this process
        try:
            for part in self.slices:
                self.workers.append(Worker(build, self.seeds[part]))
            specs: list[EnvSpec] = [w.receive(START_TIMEOUT) for w in self.workers]
            self.spec = specs[0]
        except Lost as loss:
            self.close()
            raise RuntimeError(f"a worker process {loss} while it built its environments") from None
        except BaseException:
            self.close()
            raise

    def reset(self) -> Sight:
        sight: Sight = _join(self._all("reset", [()] * len(self.workers)))
        return sight

    def step_async(self, action: np.ndarray) -> None:
        """Have every worker step its copies; ``step_wait`` waits for them."""
        self._asked = [(action[part],) for part in self.slices]
        self._ask("step", self._asked)

    def step_wait(self) -> Moment:
        moment: Moment = _join(self._answers("step", self._asked))
        return moment

    def states(self) -> list[State]:
        return [state for part in self._all("states", [()] * len(self.workers)) for state in part]

    def load(self, states: Sequence[State]) -> None:
        self._all("load", [(states[part],) for part in self.slices])

    def render(self, index: int) -> np.ndarray:
        w = next(i for i, part in enumerate(self.slices) if index < part.stop)
        given = (index - self.slices[w].start,)
        self.workers[w].send("render", *given)
        picture: np.ndarray = self._answer(w, START_TIMEOUT, "render", given)
        return picture

    def events(self) -> list[str]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._close()

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every worker's pool at once; those that were lost are replaced and asked again."""
        self._ask(method, arguments)
        return self._answers(method, arguments)

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        for worker, given in zip(self.workers, arguments, strict=True):
            worker.send(method, *given)

    def _answers(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [self._answer(w, self.timeout, method, given) for w, given in enumerate(arguments)]

    def _answer(self, w: int, timeout: float, method: str, given: tuple[Any, ...]) -> Any:
        """The answer of one worker that was asked; if it was lost, that of its replacement."""
        try:
            return self.workers[w].receive(timeout)
        except Lost as loss:
            what = str(loss)
        try:
            self._replace(w, what)
            self.workers[w].send(method, *given)
            return self.workers[w].receive(timeout)
        except Lost as loss:
            raise RuntimeError(f"worker {w} {loss}, and its replacement did too") from None

    def _replace(self, w: int, what: str) -> None:
        """Start a lost worker afresh; its copies are due, so that their next step is marked as lost."""
        part = self.slices[w]
        self.workers[w].stop()
        self.restarts[part] += 1
        seeds = [
            derive(seed, "restart", int(count)) % 2**31
            for seed, count in zip(self.seeds[part], self.restarts[part], strict=True)
        ]
        self.workers[w] = Worker(self.build, seeds)
        self.workers[w].receive(START_TIMEOUT)
        size = part.stop - part.start
        self._events.append(
            f"worker {w} of {len(self.workers)} {what}: started again, {size} "
            f"{'copy begins a new episode' if size == 1 else 'copies begin new episodes'}"
        )


def _close(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.send("close")
    for worker in workers:
        with contextlib.suppress(Lost, RuntimeError, UserError):
            worker.receive(CLOSE_TIMEOUT)
        worker.stop()


def _join(parts: Sequence[Any]) -> Any:
    """The copies of several workers one after the other, in every array of ``Sight`` and ``Moment``."""
    if isinstance(parts[0], tuple):
        return type(parts[0])(*map(_join, zip(*parts, strict=True)))
    return None if parts[0] is None else np.concatenate(parts)


def _context() -> Any:
    """Processes forked from a clean server that has torch imported already, where the system has such."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["marl.envs.copies"])
    return context


_CONTEXT = _context()


def _without_server() -> None:
    """A forked process is no parent of the fork server that its parent has started, and cannot ask it."""
    global _CONTEXT
    _CONTEXT = multiprocessing.get_context("spawn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_without_server)


def _serve(connection: Connection, job: bytes) -> None:
    """The life of a worker process: build the copies, then answer calls until the pipe or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Nor is a scheduler's SIGTERM, which every process of a job may get: the parent saves first. What copies start
    # inherits neither this handler nor a mask that the parent has.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, with every process that its copies start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        build, seeds = pickle.loads(job)
        pool = LocalPool(build, seeds)
        answer: Any = pool.spec
        while True:
            connection.send_bytes(dumps(("answer", answer)))
            method, arguments = pickle.loads(connection.recv_bytes())
            answer = getattr(pool, method)(*arguments)
    except (EOFError, BrokenPipeError, ConnectionResetError, Dead):
        return
    except UserError as error:
        connection.send_bytes(dumps(("user", str(error))))
    except Exception:
        connection.send_bytes(dumps(("error", traceback.format_exc())))


def _die_with_parent() -> None:
    """A hung environment, or a game that it started, must not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
