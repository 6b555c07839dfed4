"""A hub's folder copied as it is at one moment, so that a hub can go back to where a checkpoint was taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from marl.lifelong.store import INDEX
from marl.runfolder import explain_disk_errors


def copy_hub(source: Path, target: Path) -> None:
    """Make ``target`` the hub that ``source`` is. Nobody may write to ``source`` meanwhile, or have ``target`` open.

    Tensors are files that never change, so that both folders link to the same ones: a copy takes almost no space, and
    is done within milliseconds. What ``target`` held before is gone; if this is killed, ``target`` is not usable.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    with explain_disk_errors(target, "the hub was not copied"):
        shutil.rmtree(target, ignore_errors=True)
        (target / "tensors").mkdir(parents=True)
        for path in (source / "tensors").iterdir():
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


def _link(path: Path, to: Path) -> None:
    try:
        to.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, to)
