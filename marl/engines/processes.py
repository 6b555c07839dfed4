"""Workers that are processes of this machine."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, cast

from tqdm import tqdm

from marl.doctor import cores
from marl.engines.base import Call, Gone
from marl.engines.host import Host, ask, hear
from marl.pickling import dumps
from marl.processes import die_with_parent, how_it_ended, keep_memory, quiet_start, start


class ProcessEngine:
    """See ``Engine``. What is served has to be picklable, so that every process opens its own.

    Workers leave Ctrl-C and SIGTERM to this process and end when it does, however that happens. On Linux they already
    end with the thread that placed them.
    """

    name = "processes"

    def __init__(self) -> None:
        self.capacity = cores()
        self._workers: list[_Worker] = []
        self._said: set[str] = set()
        atexit.register(self.close)  # comes before multiprocessing's own, which would wait for the workers

    def place(self, kind: Callable[..., object], *arguments: Any) -> _Worker:
        worker = _Worker(dumps((kind, arguments)), self._said)
        self._workers.append(worker)
        return worker

    def serve(self, kind: Callable[..., object], *arguments: Any) -> Any:
        return kind(*arguments)

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        end = time.monotonic() + seconds
        mine = cast("Sequence[_Call]", calls)
        while calls:
            over = [call for call in mine if call.over]
            left = end - time.monotonic()
            if over or left <= 0:
                return list(over)
            workers = {call.worker.connection: call.worker for call in mine}
            for ready in connection.wait(list(workers), left):
                workers[cast(Connection, ready)].receive()
        return []

    def close(self) -> None:
        while self._workers:
            self._workers.pop().kill()
        atexit.unregister(self.close)


class _Worker:
    """A process, as its parent sees it.

    Attributes:
        end: how the process ended; None: it lives.
    """

    def __init__(self, recipe: bytes, said: set[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_live, args=(there,))  # no daemon: those may not start processes
        with quiet_start():
            start(self.process)
        there.close()  # so that the end of the process is the end of the pipe
        self.end: str | None = None
        self.said = said
        self.pending: deque[_Call] = deque()
        self._send(recipe)

    def call(self, method: str, *arguments: Any) -> _Call:
        call = _Call(self)
        self.pending.append(call)
        self._send(ask(method, arguments))
        return call

    def kill(self) -> None:
        if self.end is None:
            self.process.kill()
            self._gone()

    def receive(self) -> None:
        """Wait for the next answer, or for the end of the process."""
        try:
            self.pending[0].answer = self.connection.recv_bytes()
            self.pending.popleft()
        except (EOFError, OSError):
            self._gone()

    def _gone(self) -> None:
        self.end = how_it_ended(self.process)
        self.connection.close()

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # that a process died shows in ``receive``
            self.connection.send_bytes(message)


class _Call:
    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self.answer: bytes | None = None

    @property
    def over(self) -> bool:
        return self.answer is not None or self.worker.end is not None

    def result(self) -> Any:
        while not self.over:
            self.worker.receive()
        if self.answer is None:
            raise Gone(f"its process {self.worker.end}")
        return hear(self.answer, self.worker.said)


# ---- in the process of a worker -----------------------------------------------------------------------------------


def _live(parent: Connection) -> None:
    """Make the object, then answer questions in their order until the parent is gone."""
    die_with_parent()
    keep_memory()
    tqdm.set_lock(threading.RLock())  # its own has a semaphore, of which the end by ``kill`` would leave a warning
    questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(parent, questions), daemon=True).start()
    recipe = questions.get()
    if recipe is None:
        return
    host = Host(recipe)
    with contextlib.suppress(OSError):
        while (question := questions.get()) is not None:
            parent.send_bytes(host.answer(question))


def _listen(parent: Connection, questions: queue.SimpleQueue[bytes | None]) -> None:
    """Take questions at once, so that the parent never waits to put one while this process waits to answer."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            questions.put(parent.recv_bytes())
    questions.put(None)
