"""Everything in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from marl.engines.base import Call
from marl.types import UserError


class LocalEngine:
    """Workers are plain objects; a call is over when it returns."""

    name = "local"
    capacity = 1

    def place(self, kind: Callable[..., object], *arguments: Any) -> LocalWorker:
        return LocalWorker(kind, arguments)

    def serve(self, kind: Callable[..., object], *arguments: Any) -> Any:
        return kind(*arguments)

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        return list(calls)

    def close(self) -> None:
        pass


class LocalWorker:
    """Attributes: ``object``: what was made."""

    def __init__(self, kind: Callable[..., object], arguments: Sequence[Any]) -> None:
        self.object = kind(*arguments)

    def call(self, method: str, *arguments: Any) -> LocalCall:
        try:
            return LocalCall(getattr(self.object, method)(*arguments), None)
        except Exception as error:
            return LocalCall(None, error)

    def kill(self) -> None:
        pass


class LocalCall:
    def __init__(self, answer: Any, error: Exception | None) -> None:
        self._answer, self._error = answer, error

    def result(self) -> Any:
        if self._error is None:
            return self._answer
        if isinstance(self._error, UserError):
            raise self._error
        where = "".join(traceback.format_tb(self._error.__traceback__))
        raise RuntimeError(f"{type(self._error).__name__}: {self._error}\n{where}") from self._error
