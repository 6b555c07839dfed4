"""Workers that are objects of this process. Calls are executed at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from marl.engines.base import Call, Gone
from marl.engines.host import VALUE, Outcome, attempt, read


class LocalEngine:
    """See ``Engine``. Arguments and results are handed over as they are, without a copy."""

    name = "local"
    capacity = 1

    def place(self, kind: Callable[..., object], *arguments: Any) -> _Worker:
        return _Worker(attempt(lambda: kind(*arguments)))

    def serve(self, kind: Callable[..., object], *arguments: Any) -> Any:
        return kind(*arguments)

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        return list(calls)

    def close(self) -> None:
        pass


class _Worker:
    def __init__(self, made: Outcome) -> None:
        self.made: Outcome | None = made

    def call(self, method: str, *arguments: Any) -> _Call:
        if self.made is None:
            return _Call(None)
        kind, made = self.made
        return _Call(attempt(lambda: getattr(made, method)(*arguments)) if kind == VALUE else self.made)

    def kill(self) -> None:
        self.made = None


class _Call:
    def __init__(self, outcome: Outcome | None) -> None:
        self.outcome = outcome

    def result(self) -> Any:
        if self.outcome is None:
            raise Gone("the worker was let go of")
        return read(self.outcome)
