"""What processes of this project's own have in common: few threads, no stop requests, and gone when their parent is."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from marl.types import UserError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that say with how many threads libraries compute; each process has one."""


@contextlib.contextmanager
def signals_held(*signals: signal.Signals) -> Iterator[None]:
    """Processes started inside do not answer these signals (where the system can block them), nor does this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else ``Process.start`` would do it, and unblock the signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Processes started inside compute with one thread each, and leave Ctrl-C and SIGTERM to this process."""
    before = {name: os.environ.get(name) for name in THREADS}
    with signals_held(signal.SIGINT, signal.SIGTERM):
        os.environ.update(dict.fromkeys(THREADS, "1"))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def start(process: BaseProcess) -> None:
    """Start it; raises ``UserError`` in a daemonic process, which Python lets start none."""
    if multiprocessing.current_process().daemon:
        raise UserError("this process is a daemon of multiprocessing and may start no workers; expected daemon=False")
    process.start()


def how_it_ended(process: BaseProcess) -> str:
    """``was killed by SIGKILL, ...`` or ``ended with code 1``; waits for the end."""
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with code {code}"
    how = f"was killed by {signal.Signals(-code).name}"
    return how + (", perhaps for want of memory" if code == -signal.SIGKILL else "")


# ---- to be called in a process --------------------------------------------------------------------------------------


def keep_memory() -> None:
    """Tell glibc to keep freed memory: large temporaries would else be mapped and unmapped at every update."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    for parameter, size in ((m_mmap_threshold, 32 << 20), (m_trim_threshold, 1 << 30), (m_top_pad, 64 << 20)):
        libc.mallopt(parameter, size)


def die_with_parent() -> None:
    """End this process when its parent is killed, before someone else resumes the run.

    On Linux its end is bound to the thread that started it.
    """
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it; it works even in compiled code
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    """The same for other systems, and for a parent that died before."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
