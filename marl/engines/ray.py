"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from marl.doctor import cores
from marl.engines.base import Call, Gone
from marl.engines.host import Host, ask, hear
from marl.engines.ray_address import check_address
from marl.processes import THREADS, keep_memory, quiet_start
from marl.types import UserError

log = logging.getLogger("marl")

PATIENCE = 30.0
"""Seconds that a worker may wait for a CPU of the cluster before a line says so."""

QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}


class RayEngine:
    """See ``Engine``. A worker takes one CPU of any node; what is served lives on this one and takes none.

    If Ray has been started in this process already, it is used as it is, and left as it is.

    Args:
        address: HOST:PORT; see ``make_engine``.

    Raises:
        UserError: Ray is not installed or does not start, or the address leads to no cluster that takes us.
    """

    name = "ray"

    def __init__(self, address: str | None = None) -> None:
        self._ray = ray = _import_ray()
        self._owner = not ray.is_initialized()
        if self._owner:
            _start(ray, address or os.environ.get("RAY_ADDRESS"))
        self._namespace = f"marl-{uuid.uuid4()}"
        self._workers: list[_Worker] = []
        self._served: list[Any] = []
        self._said: set[str] = set()
        self.capacity = self._cpus()

    def place(self, kind: Callable[..., object], *arguments: Any) -> _Worker:
        """See ``Engine.place``.

        Raises:
            UserError: all CPUs of the cluster have a worker.
        """
        self._check_room(len(self._workers) + 1)
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        worker = _Worker(self, self._actor(options, kind, arguments))
        self._workers.append(worker)
        return worker

    def serve(self, kind: Callable[..., object], *arguments: Any) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        address = {"name": f"served-{len(self._served)}", "namespace": self._namespace}
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        actor = self._actor(options | address, kind, arguments)
        self._served.append(actor)  # it lives as long as this handle
        methods = hear(_get(self._ray, actor.methods.remote()), self._said)
        return Served(address["name"], self._namespace, methods)

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        if not calls:
            return []
        by_answer = {call.answer: call for call in cast("Sequence[_Call]", calls)}
        answers = list(by_answer)
        if not self._ray.wait(answers, num_returns=1, timeout=max(seconds, 0))[0]:
            self.say_who_waits()
            return []
        over, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        return [by_answer[answer] for answer in over]

    def close(self) -> None:
        for worker in list(self._workers):
            worker.kill()
        for actor in self._served:
            self._ray.kill(actor)
        self._served.clear()
        if self._owner and self._ray.is_initialized():
            self._ray.shutdown()

    def forget(self, worker: _Worker) -> None:
        """Its CPU is free."""
        with contextlib.suppress(ValueError):
            self._workers.remove(worker)

    def say_who_waits(self) -> None:
        """Say, once, that the cluster has had no CPU for some worker so far.

        Raises:
            UserError: it has too few, since one of its nodes left.
        """
        if any(worker.waits(PATIENCE) for worker in self._workers):
            self._check_room(len(self._workers))
            line = f"workers wait for a CPU of the Ray cluster: others use its {self._cpus()}"
            if line not in self._said and self._ray.available_resources().get("CPU", 0) < 1:
                self._said.add(line)
                log.warning("%s", line)

    def _check_room(self, workers: int) -> None:
        cpus = self._cpus()
        if workers > cpus:
            raise UserError(
                f"a worker takes a CPU and the Ray cluster has {cpus}, got {workers} workers; "
                f"--workers {max(cpus, 1)}, or start Ray on more nodes"
            )

    def _cpus(self) -> int:
        return int(self._ray.cluster_resources().get("CPU", 0))

    def _actor(self, options: dict[str, Any], kind: Callable[..., object], arguments: Sequence[Any]) -> Any:
        recipe = self._ray.cloudpickle.dumps((kind, arguments))  # it can also send what a script or notebook defines
        return self._ray.remote(RayHost).options(**options).remote(recipe)


class RayHost:
    """The actor. Only bytes go in and out: Ray would wrap exceptions in its own, and hand out arrays read-only."""

    def __init__(self, recipe: bytes) -> None:
        os.environ.update(dict.fromkeys(THREADS, "1"))
        keep_memory()
        self.host = Host(recipe)

    def answer(self, question: bytes) -> bytes:
        return self.host.answer(question)

    def methods(self) -> bytes:
        return self.host.methods()


class Served:
    """What reaches a served object from any process of the same run: it has the object's public methods."""

    def __init__(self, name: str, namespace: str, methods: frozenset[str]) -> None:
        self._address, self._methods = (name, namespace), methods
        self._actor: Any = None
        self._said: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Served, (*self._address, self._methods)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(f"the served object has no method {name!r}; it has {', '.join(sorted(self._methods))}")
        return partial(self._ask, name)

    def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        ray = _import_ray()
        if self._actor is None:
            try:
                self._actor = ray.get_actor(*self._address)
            except ValueError:
                raise Gone("the engine that served it is closed") from None
        return hear(_get(ray, self._actor.answer.remote(ask(method, arguments, keywords))), self._said)


class _Worker:
    def __init__(self, engine: RayEngine, actor: Any) -> None:
        self.engine, self.actor = engine, actor
        self.placed = time.monotonic()
        self.ready = actor.__ray_ready__.remote()

    def call(self, method: str, *arguments: Any) -> _Call:
        return _Call(self, self.actor.answer.remote(ask(method, arguments)))

    def kill(self) -> None:
        self.engine.forget(self)
        self.engine._ray.kill(self.actor)

    def waits(self, seconds: float) -> bool:
        """Whether it has not been made for so long."""
        if time.monotonic() - self.placed < seconds:
            return False
        return not self.engine._ray.wait([self.ready], timeout=0)[0]


class _Call:
    def __init__(self, worker: _Worker, answer: Any) -> None:
        self.worker, self.answer = worker, answer

    def result(self) -> Any:
        engine = self.worker.engine
        while not engine._ray.wait([self.answer], timeout=PATIENCE)[0]:
            engine.say_who_waits()
        try:
            return hear(_get(engine._ray, self.answer), engine._said)
        except Gone:
            self.worker.kill()  # it may live on, unreachable
            raise


def _get(ray: Any, answer: Any) -> bytes:
    """The bytes that an actor answered.

    Raises:
        Gone: it died, or the node that it was on.
        UserError: a node does not know this project.
    """
    from ray.exceptions import ActorDiedError, RayError, RayTaskError

    try:
        data: bytes = ray.get(answer)
    except RayError as error:
        text = str(error)
        # ``RayHost`` raises nothing of its own, so the process did not even get so far.
        if isinstance(error, RayTaskError) or (isinstance(error, ActorDiedError) and error.actor_init_failed):
            node, reason = re.search(r"ip=([^,)]+)", text), text.strip().splitlines()[-1]
            raise UserError(
                f"node {node[1] if node else '?'} of the Ray cluster cannot make workers ({reason}); "
                "it needs the same marl and the same packages as this one"
            ) from None
        reason = " ".join(text.split()).partition(" Some common causes")[0]  # known ones, for lines on end
        raise Gone(f"its process died ({reason})") from None
    return data


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("the engine 'ray' needs Ray: pip install -c constraints.txt -e '.[ray]'") from None
    return ray


def _start(ray: Any, address: str | None) -> None:
    """Join the cluster at the address, or start an instance of this process's own."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Else it prints a page to stdout, where results go, whenever a worker dies; there is no public switch.
    ray._private.worker.print_to_stdstream = lambda *data, **options: None
    with quiet_start(), _own_handler():
        if address:
            check_address(address)
            ray.init(address=address, **QUIET)
            return
        try:
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, **QUIET)
        except Exception as error:
            ray.shutdown()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"Ray did not start on this machine ({reason})") from None


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Ray puts a handler of its own in the place of the one for SIGTERM; put it back."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: Ray has not touched it
            signal.signal(signal.SIGTERM, handler)
