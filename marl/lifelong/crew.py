"""The workers among which a team's agents are divided, and what is done when one of them dies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from marl.engines import Gone, Worker
from marl.types import UserError

log = logging.getLogger("marl")

PATIENCE = 5
"""Deaths of one worker without any progress in between, after which the run ends."""


class Crew:
    """One worker for each group of agents.

    Args:
        name: the team's.
        groups: the agents of each worker, all of them in ascending order.
        place: makes the worker for a group of agents, as they are in the beginning.
        restore: brings a new worker to where the one of that number stood before it was asked to do ``method``.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[Sequence[int]],
        place: Callable[[Sequence[int]], Worker],
        restore: Callable[[int, Worker, str], None],
    ) -> None:
        self.name, self.groups = name, groups
        self._place, self._restore = place, restore
        self.workers = [place(agents) for agents in groups]
        self._deaths = [0] * len(groups)

    def close(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(Gone):
                worker.call("close").result()
            worker.kill()

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What every worker answers; of a list with an entry for each agent, each gets its own agents' part."""
        return self.ask(range(len(self.groups)), method, [self.part(k, arguments) for k in range(len(self.groups))])

    def part(self, k: int, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments that worker k gets of those of ``ask_all``."""
        return tuple([x[i] for i in self.groups[k]] if isinstance(x, list) else x for x in arguments)

    def ask(self, which: Sequence[int], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What these workers answer, all asked at once; one that died is placed anew and asked once more.

        Raises:
            UserError: a worker raised it, or died again and again.
            RuntimeError: a worker raised anything else.
        """
        calls = [self.workers[k].call(method, *given) for k, given in zip(which, arguments, strict=True)]
        answers = []
        for k, call, given in zip(which, calls, arguments, strict=True):
            while True:
                try:
                    answers.append(call.result())
                    break
                except Gone:
                    self._replace(k, method)
                    call = self.workers[k].call(method, *given)
        return answers

    def progressed(self, k: int) -> None:
        """Worker k got further than ever: its deaths up to now are forgotten."""
        self._deaths[k] = 0

    def _replace(self, k: int, method: str) -> None:
        while True:
            agents = ", ".join(f"agent_{i}" for i in self.groups[k])
            self._deaths[k] += 1
            if self._deaths[k] >= PATIENCE:
                raise UserError(f"{self.name}: the process of {agents} died {PATIENCE} times without any progress")
            log.warning("%s: the process of %s died; they begin where they were last saved", self.name, agents)
            self.workers[k].kill()
            self.workers[k] = self._place(self.groups[k])
            with contextlib.suppress(Gone):
                self._restore(k, self.workers[k], method)
                return
