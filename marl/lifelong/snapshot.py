"""A hub's folder copied as it is at one moment, so that a hub can go back to where a checkpoint was taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from marl.lifelong.store import INDEX
from marl.runfolder import explain_disk_errors, free_space, size
from marl.types import UserError


def copy_hub(source: Path, target: Path) -> None:
    """Make ``target`` the hub that ``source`` is. Nobody may write to ``source`` meanwhile, or have ``target`` open.

    Tensors are files that never change, so that both folders link to the same ones: a copy takes almost no space, and
    is done within milliseconds. What ``target`` held before is gone; if this is killed, ``target`` is not usable.

    Raises:
        UserError: the disk is full or cannot be written, or the index of ``source`` is damaged.
    """
    with explain_disk_errors(target, "the hub was not copied"), _explained(source, target):
        shutil.rmtree(target, ignore_errors=True)
        (target / "tensors").mkdir(parents=True)
        for path in (source / "tensors").glob("*"):
            _link(path, target / "tensors" / path.name)
        with (
            contextlib.closing(sqlite3.connect(source / INDEX)) as old,
            contextlib.closing(sqlite3.connect(target / INDEX)) as new,
        ):
            old.backup(new)
        for folder in (target / "tensors", target, target.parent):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


@contextlib.contextmanager
def _explained(source: Path, target: Path) -> Iterator[None]:
    """SQLite's errors, which do not say of which of the two they are, as a ``UserError`` of one line."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        free = size(free_space(target))
        raise UserError(f"{source / INDEX} was not copied to {target}: {error} ({free} free)") from error


def _link(path: Path, to: Path) -> None:
    try:
        to.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, to)
