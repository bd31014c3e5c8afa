"""Which write-ahead files are synced: every one that may hold unsynced records, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.log.embedded_sync import WalSync


def test_rotation_vanished_files_and_new_ones(tmp_path: Path) -> None:
    synced: list[str] = []
    sync = WalSync(
        str(tmp_path), lambda fd: synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    )
    folder = tmp_path.name

    def after_writing(*names: str) -> list[str]:
        for name in names:
            (tmp_path / name).touch()
        synced.clear()
        sync.sync()
        return list(synced)

    assert after_writing("000004.log") == ["000004.log", folder]
    assert after_writing() == ["000004.log"]
    # RocksDB moved on: the old file may hold what was written just before, and is never written to again.
    assert after_writing("000009.log") == ["000004.log", "000009.log", folder]
    assert after_writing("000010.sst") == ["000009.log"]
    (tmp_path / "000004.log").unlink()
    assert after_writing("000012.log", "000015.log") == ["000009.log", "000012.log", "000015.log", folder]
    assert after_writing() == ["000015.log"]
    sync.close()


def test_an_error_is_passed_on(tmp_path: Path) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "1.log").touch()
    sync = WalSync(str(tmp_path), fail)
    with pytest.raises(OSError, match="Input/output"):
        sync.sync()
    sync.close()
