"""Folders of one partition's state: one for each version of the fold and of the owner's rows, side by side.

::

    partition-0/
      fold-1-1/             what an earlier program serves, until the later one has caught up and it is let go
      fold-1-2/             what this program folds
      ready-fold-1-2/       a rebuilt one, whole, that takes its place when nobody has it open
      replaced-fold-1-2/    what it replaced, on its way out

A folder is moved or removed only while its store's lock is held, so never under the feet of a process that has it open.
Each step is a rename: a process that dies in between leaves a state that the next start finishes or throws away.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from penstock.core.rows import FOLD_VERSION
from penstock.log.store_lock import hold_folder
from penstock.schemas.errors import StoreLocked

_NAME = re.compile(r"fold-(\d+)-(\d+)")
_READY, _REPLACED = "ready-", "replaced-"


def fold_folder(path: Path, layout: int) -> Path:
    """Where below a partition's ``path`` the state of this program's fold and this ``layout`` is."""
    return path / f"fold-{FOLD_VERSION}-{layout}"


def superseded(path: Path, layout: int) -> list[Path]:
    """Folders of earlier versions. A later one is left alone: it belongs to a program that is newer than this."""
    found: list[tuple[tuple[int, int], Path]] = []
    for other in path.glob("fold-*"):
        match = _NAME.fullmatch(other.name)
        if match is not None:
            found.append(((int(match[1]), int(match[2])), other))
    return [folder for version, folder in sorted(found) if version < (FOLD_VERSION, layout)]


def remove_superseded(path: Path, layout: int) -> list[Path]:
    """Remove what earlier versions left, once it is of no more use; returns those that a process still has open."""
    in_use: list[Path] = []
    for folder in superseded(path, layout):
        try:
            with hold_folder(folder):
                shutil.rmtree(folder)
        except StoreLocked:
            in_use.append(folder)
    return in_use


def put_in_place(fresh: Path, place: Path) -> None:
    """Make ``fresh``, a whole store that nobody has open, the one at ``place``.

    Raises:
        StoreLocked: a process has the one at ``place`` open; nothing is changed.
    """
    old = place.with_name(_REPLACED + place.name)
    with contextlib.ExitStack() as stack:
        if place.is_dir():
            stack.enter_context(hold_folder(place))
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        fresh.rename(place)
        _sync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def make_ready(fresh: Path, place: Path) -> None:
    """Leave ``fresh`` beside ``place``, to take its place as soon as nobody has that one open."""
    place.parent.mkdir(parents=True, exist_ok=True)
    ready = place.with_name(_READY + place.name)
    shutil.rmtree(ready, ignore_errors=True)
    fresh.rename(ready)
    _sync_folder(place.parent)


def ready(place: Path) -> Path | None:
    """The rebuilt folder that waits to take ``place``, if there is one."""
    found = place.with_name(_READY + place.name)
    return found if found.is_dir() else None


def tidy(place: Path) -> None:
    """Remove what a process that died left of a replaced folder. For whoever has ``place`` open."""
    shutil.rmtree(place.with_name(_REPLACED + place.name), ignore_errors=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
