"""What a hub keeps on disk: an index of tasks and one file for each bundle of tensors.

    index.sqlite    a row for each task, with a checksum of its own
    tensors/        <task>-<network|replay>-<random>-<SHA-256 of the content>
    *.lock          taken while the hub is opened, and for as long as it is open

Every change is one SQLite transaction in which its files are written too, so that a file which no row names was left by
a process that died, or is about to be removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from marl.runfolder import explain_disk_errors, free_space, size, write_atomically
from marl.types import UserError

INDEX = "index.sqlite"
_PATIENCE = 60.0
"""Seconds that a transaction waits for those of other processes."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    task INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT, fingerprint BLOB, network TEXT, replay TEXT,
    replay_size INTEGER, score REAL, learner TEXT, used INTEGER, seal TEXT);
CREATE TABLE IF NOT EXISTS traffic (
    agent TEXT PRIMARY KEY, sent INTEGER, sent_raw INTEGER, received INTEGER, received_raw INTEGER);
"""

log = logging.getLogger("marl")


class Entry(NamedTuple):
    """One row of the index.

    Attributes:
        task: 1, 2, ... in the order of the first meeting; never used twice.
        agent: who met it first.
        fingerprint: packed.
        network, replay: names of files; no network: not learnt; no replay: not learnt, or evicted.
        replay_size: bytes of the replay's file; 0 without one.
        score, learner: of who learnt it; minus infinity and empty: nobody.
        used: a clock that each publication and each fetch of any task advances, as read at this task's last.
    """

    task: int
    agent: str
    fingerprint: bytes
    network: str | None = None
    replay: str | None = None
    replay_size: int = 0
    score: float = -math.inf
    learner: str = ""
    used: int = 0

    def unlearnt(self) -> Entry:
        """The same task, to be learnt anew."""
        return Entry(self.task, self.agent, self.fingerprint)

    def seal(self) -> str:
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()


class Store:
    """The folder, safe with any number of threads and processes. A forked child must open its own.

    Raises:
        UserError: nothing can be written there, or the index is damaged while another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors = folder, folder / "tensors"
        self._mutex = threading.RLock()
        self._process = os.getpid()
        self._written: list[str] = []
        self._doomed: list[str] = []
        with explain_disk_errors(folder, "the hub was not opened"):
            self.tensors.mkdir(parents=True, exist_ok=True)
            self._present = os.open(folder / "open.lock", os.O_RDWR | os.O_CREAT, 0o644)
            opening = os.open(folder / "opening.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(opening, fcntl.LOCK_EX)
            fcntl.flock(self._present, fcntl.LOCK_SH)
            with self._explained():
                self._db = self._open_index()
            self._sweep()
        except BaseException:
            os.close(self._present)
            raise
        finally:
            os.close(opening)

    def close(self) -> None:
        self._db.close()
        os.close(self._present)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the ``with`` block happens at once or not at all, also if the process is killed.

        Raises:
            UserError: the disk is full or cannot be written, or the index is damaged.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a hub does not survive a fork; open its folder again in the new process")
        with self._mutex, self._explained():
            self._written, self._doomed = [], []
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                    self._unlink(self._written)
                raise
            self._unlink(self._doomed)

    # ---- inside a transaction -------------------------------------------------------------------------------------

    def entry(self, task: int) -> Entry | None:
        """The row of a task; None: there is none, or it was damaged and is forgotten now."""
        return next(self._entries("task = ?", task), None)

    def entries(self, after: int = 0) -> list[Entry]:
        """The rows with a higher number than ``after``, in ascending order; damaged ones are forgotten."""
        return list(self._entries("task > ?", after))

    def put(self, entry: Entry) -> None:
        """Write a row; the files that it names no longer are removed when the transaction is over."""
        old = self.entry(entry.task)
        if old is not None:
            kept = (entry.network, entry.replay)
            self._doomed += [name for name in (old.network, old.replay) if name and name not in kept]
        row = (*entry, entry.seal())
        self._db.execute(f"INSERT OR REPLACE INTO task VALUES ({', '.join('?' * len(row))})", row)

    def next_task(self) -> int:
        """The number of a task yet to be put."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'task'").fetchone()
        return 1 + (row[0] if row else 0)

    def next_use(self) -> int:
        """The next reading of the clock of ``Entry.used``."""
        return 1 + (self._db.execute("SELECT MAX(used) FROM task").fetchone()[0] or 0)

    def write(self, task: int, kind: str, data: bytes) -> str:
        """Write a file and return its name, to be put in a row in the same transaction."""
        name = f"{task:06d}-{kind}-{secrets.token_hex(8)}-{hashlib.sha256(data).hexdigest()}"
        self._written.append(name)
        write_atomically(self.tensors / name, data)
        return name

    def read(self, name: str) -> bytes | None:
        """What ``write`` wrote; None if it is gone, cannot be read or is not the same any more."""
        try:
            data = (self.tensors / name).read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            return None
        return data if hashlib.sha256(data).hexdigest() == name.rpartition("-")[2] else None

    def add_traffic(self, agent: str, *, sent: tuple[int, int] = (0, 0), received: tuple[int, int] = (0, 0)) -> None:
        """Count bytes, each time (compressed, raw)."""
        self._db.execute("INSERT OR IGNORE INTO traffic VALUES (?, 0, 0, 0, 0)", (agent,))
        change = "sent = sent + ?, sent_raw = sent_raw + ?, received = received + ?, received_raw = received_raw + ?"
        self._db.execute(f"UPDATE traffic SET {change} WHERE agent = ?", (*sent, *received, agent))

    def traffic(self) -> list[tuple[str, int, int, int, int]]:
        """Agent, sent, sent raw, received, received raw, in bytes."""
        return self._db.execute("SELECT * FROM traffic ORDER BY agent").fetchall()

    # ---- how it is done -------------------------------------------------------------------------------------------

    def _entries(self, condition: str, number: int) -> Iterator[Entry]:
        rows = self._db.execute(f"SELECT * FROM task WHERE {condition} ORDER BY task", (number,)).fetchall()
        for *values, seal in rows:
            entry = Entry(*values)
            if entry.seal() == seal:
                yield entry
            else:
                self._db.execute("DELETE FROM task WHERE task IS ?", (entry.task,))
                message = "hub %s: task %s: its row in the index is damaged; forgotten, to be learnt anew"
                log.warning(message, self.folder, entry.task)

    def _open_index(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            try:
                fcntl.flock(self._present, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.folder / INDEX}: {error}, and another process uses it; end that first"
                ) from None
            (self.folder / INDEX).replace(self.folder / f"{INDEX}.damaged")
            for suffix in ("-wal", "-shm"):
                (self.folder / f"{INDEX}{suffix}").unlink(missing_ok=True)
            message = "hub %s: %s (%s); moved to %s.damaged, all tasks are to be learnt anew"
            log.warning(message, self.folder, INDEX, error, INDEX)
            fcntl.flock(self._present, fcntl.LOCK_SH)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.folder / INDEX, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        db.text_factory = lambda data: data.decode(errors="replace")  # a flipped bit is for the seal to find
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # what was shared survives a power cut too
            check_pages(db)
            db.executescript(_SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _sweep(self) -> None:
        """Forget damaged rows, and remove the files that no row names."""
        with self.transaction():
            named = {name for entry in self.entries() for name in (entry.network, entry.replay)}
            self._doomed += [path.name for path in self.tensors.iterdir() if path.name not in named]

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            (self.tensors / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """The errors of the disk and of SQLite as a ``UserError`` of one line."""
        with explain_disk_errors(self.folder, "the hub keeps what it had"):
            try:
                yield
            except sqlite3.DatabaseError as error:
                if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
                    raise  # our mistake
                free = size(free_space(self.folder))
                raise UserError(f"{self.folder / INDEX}: {error} ({free} free): the hub keeps what it had") from error


def check_pages(db: sqlite3.Connection) -> None:
    """Raise ``sqlite3.DatabaseError`` where the pages of a database are damaged."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found.splitlines()[-1])
