"""What the engines share: an object that answers calls, and answers as bytes that any process can read."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marl.pickling import dumps
from marl.types import UserError

log = logging.getLogger("marl")

VALUE, USER_ERROR, ERROR = "value", "user error", "error"

Outcome = tuple[str, Any]
"""One of these kinds, and what was returned or the text of the error."""


def attempt(what: Callable[[], Any]) -> Outcome:
    """What comes of calling it; no error of its own is raised."""
    try:
        return VALUE, what()
    except UserError as error:
        return USER_ERROR, str(error)
    except Exception as error:
        return ERROR, f"{type(error).__name__}: {error}, raised in a worker here:\n{traceback.format_exc()}"


def read(outcome: Outcome) -> Any:
    """What was returned.

    Raises:
        UserError, RuntimeError: what was raised, as ``Call.result`` has it.
    """
    kind, value = outcome
    if kind == USER_ERROR:
        raise UserError(value)
    if kind == ERROR:
        raise RuntimeError(value)
    return value


class Host:
    """The object of a worker process, or why there is none. It is made and asked by bytes, and answers with bytes.

    Warnings of the project's logger go with the next answer, so that they are said where the run is watched.

    Args:
        recipe: pickled ``(kind, arguments)``.
    """

    def __init__(self, recipe: bytes) -> None:
        self.notes: list[str] = []
        log.addHandler(_Notes(self.notes))
        log.propagate = False
        self.made = attempt(lambda: _make(recipe))

    def answer(self, question: bytes) -> bytes:
        """Call a method of the object, as ``ask`` has put it."""
        return self._answer(lambda made: _call(made, question))

    def methods(self) -> bytes:
        """The names of the object's public methods, as an answer."""
        return self._answer(lambda made: frozenset(name for name in dir(made) if _is_method(made, name)))

    def _answer(self, what: Callable[[Any], Any]) -> bytes:
        kind, made = self.made
        outcome = attempt(lambda: dumps(what(made))) if kind == VALUE else self.made
        notes = list(self.notes)
        self.notes.clear()
        return pickle.dumps((outcome, notes))


def ask(method: str, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> bytes:
    """A question to ``Host.answer``."""
    return dumps((method, tuple(arguments), dict(keywords or {})))


def hear(answer: bytes, said: set[str]) -> Any:
    """The value in an answer of ``Host``; raises as ``read`` does. Each warning that comes along is said once."""
    outcome, notes = pickle.loads(answer)
    for note in notes:
        if note not in said:
            said.add(note)
            log.warning("%s", note)
    value = read(outcome)
    return pickle.loads(value)


def _make(recipe: bytes) -> Any:
    kind, arguments = pickle.loads(recipe)
    return kind(*arguments)


def _call(made: Any, question: bytes) -> Any:
    method, arguments, keywords = pickle.loads(question)
    return getattr(made, method)(*arguments, **keywords)


def _is_method(made: Any, name: str) -> bool:
    return not name.startswith("_") and callable(getattr(made, name))


class _Notes(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())
