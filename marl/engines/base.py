"""What an engine is: where workers live, and how they are asked to do something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Gone(Exception):
    """A worker's process died before it answered; what it held is lost, and another worker has to be placed."""


class Call(Protocol):
    """Something that a worker was asked to do."""

    def result(self) -> Any:
        """What the method returned; waits for it.

        Raises:
            Gone: the worker died.
            UserError: the method raised one, in the same words.
            RuntimeError: the method raised anything else; the message has its type, its text and where it was raised.
        """


class Worker(Protocol):
    """An object that lives somewhere. Its calls are executed one after another, in their order."""

    def call(self, method: str, *arguments: Any) -> Call:
        """Have ``object.method(*arguments)`` executed. A worker that has died says so in the call's ``result``."""

    def kill(self) -> None:
        """Let go of it, whatever it is doing."""


class Engine(Protocol):
    """Where workers live: in this process, in processes of their own, or in a Ray cluster.

    Arguments and results travel by pickle: tensors, arrays, plain values. They arrive as copies, but in this process.
    A worker computes with one thread.

    Attributes:
        name: ``local``, ``processes`` or ``ray``.
        capacity: how many workers can compute at the same time.
    """

    name: str
    capacity: int

    def place(self, kind: Callable[..., object], *arguments: Any) -> Worker:
        """Make ``kind(*arguments)`` somewhere; an error of its own shows in the first call's ``result``."""

    def serve(self, kind: Callable[..., object], *arguments: Any) -> Any:
        """Make an object that keeps its state on this machine's disk, and return what reaches it from any worker.

        The result has the object's public methods, here and in every worker that it is handed to as an argument. If the
        process in which it lives dies, it is made anew from the same arguments, and calls under way are repeated, so
        that each of its methods must do no harm when executed twice.
        """

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        """Those that are over, as soon as there are any; none when there were none for ``seconds``."""

    def close(self) -> None:
        """Let go of everything that was made."""
