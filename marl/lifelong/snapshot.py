"""A hub's folder copied as it is at one moment, so that a hub can go back to where a checkpoint was taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from marl.lifelong.store import INDEX, check_pages
from marl.runfolder import explain_disk_errors, free_space, size
from marl.types import UserError


class Damaged(UserError):
    """A hub cannot be copied, as its index is gone or cannot be read."""


def copy_hub(source: Path, target: Path) -> None:
    """Make ``target`` the hub that ``source`` is. Nobody may write to ``source`` meanwhile, or have ``target`` open.

    Tensors are files that never change, so that both folders link to the same ones: a copy takes almost no space, and
    is done within milliseconds. What ``target`` held before is gone once the copy is complete and sound; where it
    cannot be made it stays as it was.

    Raises:
        Damaged: the index of ``source`` is gone or damaged.
        UserError: the disk is full or cannot be written.
    """
    if not (source / INDEX).is_file():
        raise Damaged(f"{source / INDEX} is gone")
    made = target.with_name(f"{target.name}.new")
    try:
        with explain_disk_errors(target, "the hub was not copied"), _explained(source, target):
            shutil.rmtree(made, ignore_errors=True)
            (made / "tensors").mkdir(parents=True)
            for path in (source / "tensors").glob("*"):
                _link(path, made / "tensors" / path.name)
            with (
                contextlib.closing(sqlite3.connect(source / INDEX)) as old,
                contextlib.closing(sqlite3.connect(made / INDEX)) as new,
            ):
                old.backup(new)
                check_pages(new)
                if not new.execute("SELECT name FROM sqlite_master WHERE name = 'task'").fetchone():
                    raise sqlite3.DatabaseError("no tasks in it")
            _sync(made / "tensors")
            _sync(made)
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)
            _sync(target.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _explained(source: Path, target: Path) -> Iterator[None]:
    """SQLite's errors, which do not say of which of the two they are, as a ``UserError`` of one line."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        free = size(free_space(target))
        kind = UserError if isinstance(error, sqlite3.OperationalError) else Damaged  # the disk, or what is on it
        raise kind(f"{source / INDEX} was not copied to {target}: {error} ({free} free)") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _link(path: Path, to: Path) -> None:
    try:
        to.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, to)
