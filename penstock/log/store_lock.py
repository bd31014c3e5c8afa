"""Who has a store's folder: to move or remove one, nobody may have it open, nor open it meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator

from penstock.schemas.errors import StoreLocked

_LOCK_FILE = "LOCK"
"""RocksDB's own, and so is the kind of lock that is taken on it."""

_held_here: set[str] = set()


def opened(path: str) -> None:
    """This process has the folder from now on."""
    _held_here.add(os.path.realpath(path))


def closed(path: str) -> None:
    """This process has it no longer."""
    _held_here.discard(os.path.realpath(path))


@contextlib.contextmanager
def hold_folder(path: str | os.PathLike[str]) -> Generator[None]:
    """Keep everybody from opening the store in a folder that exists.

    Raises:
        StoreLocked: a process, this one included, has it open.
    """
    folder = os.fspath(path)
    locked = StoreLocked(f"The data folder {folder} is in use by another process.", path=folder)
    # Such a lock belongs to the process: taken once more it would be granted, and given back it would free the owner's.
    if os.path.realpath(folder) in _held_here:
        raise locked
    with open(os.path.join(folder, _LOCK_FILE), "a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise locked from error
        yield
