"""The folder of one run: its creation, its ``config.json``, and the lock that keeps a second process out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marl.types import UserError

CONFIG = "config.json"
LOCK = ".lock"
RUNS = Path("runs")

_EARLY = re.compile(
    r"\.lock|(metrics|init|teachers)\.csv|config\.json\.tmp|tensorboard/[^/]+"
    r"|checkpoints/0{12}[-\w]*\.(json|safetensors)(\.tmp)?"
)
"""Files that a run writes before its ``config.json``."""

_held: set[int] = set()


def _drop_locks() -> None:
    """A forked worker must not keep the run locked after this process was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_locks)


PARTS = "parts"
"""Where the parts of a run that workers share are, in its folder."""


def to_make(name: str | Path) -> Path:
    """The folder that ``--run`` names; raises ``UserError`` for no name, which is not the present folder."""
    if name == "":
        raise UserError("run: expected a folder to make, got ''")
    return Path(name)


def new_run(algorithm: str, environment: str, folder: Path | None = None) -> Path:
    """Make the folder of a new run.

    Args:
        algorithm: for the default name.
        environment: for the default name; its slash becomes a dash.
        folder: where the run goes; None: ``runs/<algorithm>-<environment>-<time>``, made unique by a number if need be.

    Raises:
        UserError: the folder holds a run already, or something else that is not ours to mix with.
    """
    if folder is None:
        name = f"{algorithm}-{environment.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
        candidates = [RUNS / name, *(RUNS / f"{name}-{i}" for i in range(2, 1000))]
        for candidate in candidates:
            with contextlib.suppress(FileExistsError), explain_disk_errors(RUNS, "the run was not started"):
                candidate.mkdir(parents=True)
                return candidate
        raise UserError(f"{RUNS / name} and 998 folders like it exist; name one with --run FOLDER")
    with explain_disk_errors(folder, "the run was not started"):
        if os.path.lexists(folder) and not folder.is_dir():
            what = "a file" if folder.exists() else "a link to nothing"
            raise UserError(f"{folder} is {what}; --run expects a folder that does not exist yet")
        if (folder / CONFIG).exists():
            raise UserError(f"{folder} already holds a run; to go on with it: {resume_command(folder)}")
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            _clear_early_death(folder)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _clear_early_death(folder: Path) -> None:
    """Delete what a run left that was killed before its ``config.json`` and so before its first step.

    Raises ``UserError``, and deletes nothing, where there is anything else.
    """
    there = folder.rglob("*") if (folder / LOCK).exists() else ()  # without a lock it is another's, and may be large
    left = [path for path in there if not path.is_dir() or path.is_symlink()]
    if not left or not all(_is_early(path, str(path.relative_to(folder))) for path in left):
        raise UserError(f"{folder} is not empty and holds no run; choose a folder that does not exist yet")
    with lock(folder):
        if (folder / CONFIG).exists():
            raise UserError(f"{folder} holds a run by now; to go on with it: {resume_command(folder)}")
        for path in left:
            if path.name != LOCK:
                path.unlink(missing_ok=True)


def _is_early(path: Path, name: str) -> bool:
    """Whether a run may have left this file before its first step: links to its parts, no row of numbers."""
    if not _EARLY.fullmatch(name):
        return False
    if name.startswith("tensorboard/"):
        return path.is_symlink()
    return name != "metrics.csv" or path.read_bytes().count(b"\n") <= 1


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only process that writes into ``folder`` for the length of the ``with`` block.

    The lock vanishes with the process, however it dies. Reading a run (evaluate, plot) needs no lock.

    Raises:
        UserError: another process holds it; the message has its process id.
    """
    with explain_disk_errors(folder, "the run was not locked"):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(f"run folder {folder} is in use by process {owner or '(starting)'}") from None
    _held.add(descriptor)
    try:
        with explain_disk_errors(folder, "the run was not locked"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if descriptor in _held:  # gone in a forked child
            _held.remove(descriptor)
            os.close(descriptor)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json`` whole or not at all."""
    with explain_disk_errors(folder, f"{CONFIG} was not written"):
        write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """What ``write_config`` wrote; raises ``UserError`` where there is no run or its configuration cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no run: it has no {CONFIG}{_nearby(folder)}") from None
    except OSError as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is damaged: expected an object, got {type(config).__name__}")
    return config


def read_training(folder: Path) -> dict[str, Any]:
    """The configuration of a run of ``marl train``; raises ``UserError`` for an experiment, which has no policies."""
    config = read_config(folder)
    if "experiment" in config:
        raise UserError(
            f"{folder} is a run of the experiment {config['experiment']}, expected one of marl train; "
            f"its numbers are in {folder / 'results.csv'}; "
            f"{resume_command(folder)} goes on with it and draws its picture"
        )
    return config


def resume_command(folder: Path) -> str:
    """What a user types to go on with a run."""
    return shlex.join(["marl", "resume", str(folder)])


def watch_command(folder: Path) -> str:
    """What a user types to see a run's curves."""
    return shlex.join(["tensorboard", "--logdir", str(folder / "tensorboard")])


def spelt(text: str) -> str:
    """The text with what is no Unicode (of a folder's name, say) spelt out, for what takes nothing else."""
    return text.encode(errors="backslashreplace").decode()


def _nearby(folder: Path) -> str:
    """The run that the folder is in, or else the newest beside or below it, as the end of a sentence."""
    if folder.exists() and (around := [parent for parent in folder.parents if (parent / CONFIG).exists()]):
        return f"; it is inside the run {around[0]}"
    found = [c for parent in {folder, folder.parent, RUNS} for c in parent.glob(f"*/{CONFIG}")]
    return f"; the newest run there is {max(found, key=lambda c: c.stat().st_mtime).parent}" if found else ""


def write_atomically(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, and have it on the disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_target(path: Path, ending: str) -> None:
    """Make the folder of a file that is to be written later; raises ``UserError`` where it cannot be written."""
    if path.suffix.lower() != ending:
        raise UserError(f"{path}: expected a file whose name ends in {ending}")
    with explain_disk_errors(path.absolute().parent, f"{path.name} cannot be written"):
        if path.is_dir():
            raise UserError(f"{path} is a folder, expected a file whose name ends in {ending}")
        with contextlib.suppress(FileExistsError):  # a file of that name: the next line says so
            path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextlib.contextmanager
def explain_disk_errors(folder: Path, consequence: str) -> Iterator[None]:
    """Turn the errors that only the user can mend (no space, no permission, ...) into a ``UserError`` of one line.

    Args:
        folder: named in the message, together with its free space.
        consequence: what did not happen, the end of the message.
    """
    try:
        yield
    except OSError as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        place = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
        handles = (errno.EMFILE, errno.ENFILE)
        if error.errno not in (*full, *place, *handles):
            raise
        free = f" ({size(free_space(folder))} free)" if error.errno in full else ""
        raise UserError(f"{folder}: {error.strerror}{free}: {consequence}") from error


def free_space(folder: Path) -> int:
    """Bytes that may still be written where ``folder`` is or would be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free


def size(count: float) -> str:
    """Bytes as people read them: ``1.5 MB`` (decimal units)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
