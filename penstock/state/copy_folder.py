"""The folds that a role keeps in its folder, to be compared with others: looked at, not opened, so that it goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from penstock.core.rows import FOLD_VERSION
from penstock.log.store import Store
from penstock.schemas.errors import NotFound
from penstock.state.partition_store import FOLD, META, Progress, StoreIdentity, stored_fold

_PARTITION = re.compile(r"(?:partition-)?(\d+)")


class StoredRows:
    """One partition's stored rows as they are now. Close it when done."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder, (FOLD, META), read_only=True)
        self.identity: StoreIdentity
        self.progress: Progress
        try:
            self.identity, self.progress = stored_fold(self._store)
        except BaseException:
            self._store.close()
            raise

    def job_rows(self) -> Iterator[tuple[bytes, bytes]]:
        return self._store.scan(FOLD, b"j", b"k")

    def close(self) -> None:
        self._store.close()


def stored_partitions(folder: Path) -> list[StoredRows]:
    """All partitions below a role's folder (``projection`` or ``orchestrator`` in its data folder), by number.

    Raises:
        NotFound: there are none of this version of the fold.
        StoreLocked, LogError: one cannot be read.
    """
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _PARTITION.fullmatch(path.name)
        folds = sorted(path.glob(f"fold-{FOLD_VERSION}-*"))
        if match is not None and folds:
            found[int(match[1])] = folds[-1]
    if not found:
        raise NotFound(
            f"there is no state in {folder} that this version can read; a role's own folder is meant, such as"
            " penstock-data/projection, or penstock-data/node of `penstock dev`"
        )
    opened: list[StoredRows] = []
    try:
        for number in sorted(found):
            opened.append(StoredRows(found[number]))
    except BaseException:
        for rows in opened:
            rows.close()
        raise
    return opened
