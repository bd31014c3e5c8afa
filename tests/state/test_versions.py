"""States of several versions side by side: who may go, and when."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.core.rows import FOLD_VERSION
from penstock.log.store import Store
from penstock.schemas.errors import StoreLocked
from penstock.schemas.ids import job_key
from penstock.state import keeping
from penstock.state.keeping import StateKeeper
from penstock.state.partition_store import PartitionStore, StoreIdentity
from penstock.state.versions import make_ready, put_in_place, ready, remove_superseded, superseded
from tests.state.writing import TOPIC, Writer
from tests.waiting import until

IDENTITY = StoreIdentity("memory", TOPIC, 0, 1)
HOLDER = """
import sys
from penstock.log.store import Store
with Store(sys.argv[1], ("a",)):
    print("open", flush=True)
    sys.stdin.read()
"""


def made(path: Path, name: str) -> Path:
    """A store in a folder of this name."""
    Store(path / name, ("a",)).close()
    return path / name


def names(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


def test_only_what_is_earlier_is_superseded(tmp_path: Path) -> None:
    later = f"fold-{FOLD_VERSION + 1}-1"
    for name in (f"fold-{FOLD_VERSION}-2", f"fold-{FOLD_VERSION}-12", "fold-0-99", later, "fold-x", "other"):
        made(tmp_path, name)
    assert [found.name for found in superseded(tmp_path, 3)] == ["fold-0-99", f"fold-{FOLD_VERSION}-2"]
    assert remove_superseded(tmp_path, 3) == []
    assert names(tmp_path) == sorted([f"fold-{FOLD_VERSION}-12", later, "fold-x", "other"])


def test_what_another_process_serves_stays(tmp_path: Path) -> None:
    old = made(tmp_path, "fold-0-1")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert remove_superseded(tmp_path, 1) == [old]
        with pytest.raises(StoreLocked):
            put_in_place(made(tmp_path, "fresh"), old)
        process.communicate()
    assert names(tmp_path) == ["fold-0-1", "fresh"]
    assert remove_superseded(tmp_path, 1) == []
    assert names(tmp_path) == ["fresh"]


def test_what_this_process_serves_stays_and_stays_locked(tmp_path: Path) -> None:
    old = tmp_path / "fold-0-1"
    with Store(old, ("a",)):
        assert remove_superseded(tmp_path, 1) == [old]
        found = subprocess.run(
            [sys.executable, "-c", HOLDER, str(old)], input=b"", capture_output=True, check=False
        )
        assert b"in use by another process" in found.stderr
    assert remove_superseded(tmp_path, 1) == []


def test_a_folder_takes_anothers_place(tmp_path: Path) -> None:
    place, fresh = made(tmp_path, "place"), made(tmp_path, "fresh")
    (fresh / "mark").touch()
    (made(tmp_path, "replaced-place") / "left by one that died").touch()
    put_in_place(fresh, place)
    assert (place / "mark").exists()
    assert names(tmp_path) == ["place"]
    put_in_place(place, tmp_path / "elsewhere")
    assert names(tmp_path) == ["elsewhere"]


def test_a_folder_waits_for_its_place(tmp_path: Path) -> None:
    place = tmp_path / "partition-0" / "fold-1-1"
    assert ready(place) is None
    make_ready(made(tmp_path, "first"), place)
    make_ready(made(tmp_path, "second"), place)
    assert ready(place) == tmp_path / "partition-0" / "ready-fold-1-1"
    assert names(tmp_path) == ["partition-0"]


async def test_an_earlier_version_is_served_until_the_later_one_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "TURN_EVERY_S", 0.001)
    writer = Writer()
    for number in range(5):
        writer.enqueue(f"j{number}")
        writer.end_record()
    serving = PartitionStore.open(tmp_path, identity=IDENTITY, extra=("old",), layout=1)
    for record in writer.records:
        serving.fold(record)
    serving.commit()
    later = PartitionStore.open(tmp_path, identity=IDENTITY, extra=("new",), layout=2)
    assert later.next_offset == 0
    both = [f"fold-{FOLD_VERSION}-1", f"fold-{FOLD_VERSION}-2"]
    looked = 0

    def caught_up(store: PartitionStore) -> bool:
        nonlocal looked
        looked += 1
        return store.committed_offset == serving.committed_offset

    running = asyncio.create_task(StateKeeper("projection", [later], caught_up=caught_up).run())
    await until(lambda: looked > 2)
    assert names(tmp_path) == both
    for record in writer.records:
        later.fold(record)
    later.commit()
    assert later.digest == serving.digest
    looked = 0
    await until(lambda: looked > 2)
    assert names(tmp_path) == both, "the earlier program still serves it"
    assert serving.job(job_key("default", "j1")) == later.job(job_key("default", "j1")) is not None
    serving.close()
    await until(lambda: names(tmp_path) == both[1:])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    later.close()
