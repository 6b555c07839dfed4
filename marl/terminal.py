"""What a run and the person at its terminal tell each other: how far it is, a line now and then, and to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from marl.runfolder import resume_command


class Interrupted(KeyboardInterrupt):
    """The user (or the machine's scheduler) asked the run to stop; its state has been saved."""


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to instead of ending the process; a second SIGINT ends it at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals go elsewhere
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def say_how_to_go_on(folder: Path) -> Iterator[None]:
    """Add to an ``Interrupted`` that passes through how the run in ``folder`` is resumed."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with: {resume_command(folder)}") from None


def say_where(place: str, finished: bool) -> None:
    """Say from which step or steps a run goes on, or that they are its end."""
    say(f"finished at {place}; --steps gives it a later end" if finished else f"going on from {place}")


class _Stderr:
    """Stderr as it is at each call. What it cannot take (there is none, its reader is gone, its disk is full) is left
    unsaid: a run does not end for want of somebody to tell.
    """

    def write(self, text: str) -> None:
        self._tried("write", text)

    def flush(self) -> None:
        self._tried("flush")

    def isatty(self) -> bool:
        return bool(self._tried("isatty"))

    def _tried(self, method: str, *arguments: str) -> Any:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none or a plain one; no room; closed
            return getattr(sys.stderr, method)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR: Any = _Stderr()


class Bar(tqdm):
    """One without the thread that tqdm adds, which would stay when the bar is gone and makes a later fork unsafe."""

    monitor_interval = 0

    def refresh(self, *arguments: Any, **options: Any) -> None:
        """Show nothing before ``delay`` is over, though ``say`` asks for it: ``close`` would not end that line."""
        if not self.delay or self._time() >= self.start_t + self.delay:
            super().refresh(*arguments, **options)


def progress_bar(total: int | None, initial: int, unit: str, visible: bool, late: bool = False) -> Any:
    """A bar on stderr, to be closed; a terminal sees it often, a log file now and then.

    Args:
        total, initial, unit: of what is counted; None: nobody knows how much there will be.
        visible: False: nothing is shown.
        late: nothing is shown of what is over before a second line would come.
    """
    rarely = 0.2 if STDERR.isatty() else 10.0  # seconds between lines; a log file needs few
    return Bar(
        total=total,
        initial=initial,
        unit=unit,
        file=STDERR,
        disable=not visible,
        dynamic_ncols=True,
        delay=rarely if late else 0.0,
        mininterval=rarely,
        miniters=1,  # the clock is read at each step, so that a step that takes long is followed by a line
    )


def say(line: str) -> None:
    """One line for people, above the progress bar if there is one."""
    tqdm.write(line, file=STDERR)
