"""Both stores, under the same tests."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.log import store as store_module
from penstock.log.kv import KeyValueStore
from penstock.log.store import Store, Tuning
from penstock.log.store_lock import hold_folder
from penstock.log.store_memory import MemoryStore
from penstock.schemas.errors import DiskFailed, LogCorrupt, StoreLocked
from tests.waiting import wait_for

FAMILIES = ("jobs", "timers")


@pytest.fixture(params=["rocks", "rocks_no_wal", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyValueStore]:
    opened: KeyValueStore
    if request.param == "memory":
        opened = MemoryStore(FAMILIES)
    else:
        opened = Store(tmp_path / "store", FAMILIES, wal=request.param == "rocks")
    yield opened
    opened.close()


def put(store: KeyValueStore, family: str, **pairs: str) -> None:
    batch = store.batch()
    for key, value in pairs.items():
        batch.put(family, key.encode(), value.encode())
    store.write(batch)


def keys(pairs: Iterator[tuple[bytes, bytes]]) -> str:
    return " ".join(key.decode() for key, _ in pairs)


def test_get_and_multi_get(store: KeyValueStore) -> None:
    put(store, "jobs", a="1", b="")
    assert store.get("jobs", b"a") == b"1"
    assert store.get("jobs", b"b") == b""
    assert store.get("jobs", b"c") is None
    assert store.get("timers", b"a") is None
    assert store.multi_get("jobs", (b"b", b"zz", b"a")) == [b"", None, b"1"]
    family = store.family("jobs")
    assert family.get(b"a") == b"1"
    assert family.multi_get([b"a", b"c"]) == [b"1", None]
    with pytest.raises(KeyError):
        store.family("unknown")


def test_scan_bounds_order_and_limit(store: KeyValueStore) -> None:
    put(store, "jobs", a="1", b="2", c="3", d="4", e="5")
    put(store, "timers", c="x")
    assert list(store.scan("jobs", b"b", b"d")) == [(b"b", b"2"), (b"c", b"3")]
    assert keys(store.scan("jobs")) == "a b c d e"
    assert keys(store.scan("jobs", reverse=True)) == "e d c b a"
    assert keys(store.scan("jobs", b"b", b"e", reverse=True)) == "d c b"
    assert keys(store.scan("jobs", b"bb", reverse=True, limit=2)) == "e d"
    assert keys(store.scan("jobs", b"b", limit=2)) == "b c"
    assert keys(store.scan("jobs", b"b", limit=0)) == ""
    assert keys(store.scan("jobs", limit=0, reverse=True)) == ""
    assert keys(store.scan("jobs", b"d", b"b")) == ""
    assert keys(store.scan("jobs", b"x")) == ""


def test_batches_apply_in_order_and_once(store: KeyValueStore) -> None:
    put(store, "jobs", a="1", b="2", c="3", d="4")
    batch = store.batch()
    batch.delete("jobs", b"a")
    batch.put("jobs", b"b", b"new")
    batch.delete_range("jobs", b"c", b"d")
    batch.put("timers", b"t", b"1")
    assert len(batch) == 4
    assert batch.size_bytes > 0
    store.write(batch)
    assert list(store.scan("jobs")) == [(b"b", b"new"), (b"d", b"4")]
    assert store.get("timers", b"t") == b"1"
    with pytest.raises(ValueError, match="already written"):
        store.write(batch)


def test_delete_range(store: KeyValueStore) -> None:
    put(store, "jobs", a="1", b="2", c="3")
    put(store, "timers", b="2")
    store.delete_range("jobs", b"a", b"c")
    assert keys(store.scan("jobs")) == "c"
    assert keys(store.scan("timers")) == "b"


def test_writing_during_a_scan_is_allowed(store: KeyValueStore) -> None:
    put(store, "jobs", a="1", b="2", c="3")
    scan = store.scan("jobs")
    assert next(scan) == (b"a", b"1")
    store.delete_range("jobs", b"a", b"z")
    assert keys(scan) in {"", "b c"}


@pytest.mark.parametrize("wal", [True, False])
def test_content_survives_a_close_whatever_is_left_open(tmp_path: Path, wal: bool) -> None:
    store = Store(tmp_path, FAMILIES, wal=wal)
    put(store, "jobs", a="1", b="2")
    put(store, "timers", t="1")
    left_open = [store.scan("jobs"), store.scan("jobs", reverse=True), store.family("jobs"), store.batch()]
    next(left_open[0])
    store.close()
    store.close()
    with pytest.raises(Exception, match="clos"):
        left_open[2].get(b"a")
    with pytest.raises(ValueError, match="closed"):
        store.write(store.batch())
    with Store(tmp_path, FAMILIES, wal=wal) as again:
        assert list(again.scan("jobs")) == [(b"a", b"1"), (b"b", b"2")]
        assert again.get("timers", b"t") == b"1"
    del left_open


def test_a_store_without_wal_that_dies_loses_the_tail_of_all_families_alike(tmp_path: Path) -> None:
    code = """
import os, sys
from penstock.log.store import Store, Tuning
store = Store(sys.argv[1], ("jobs", "timers"), wal=False)
for number in range(2_000):
    batch = store.batch()
    batch.put("jobs", b"%08d" % number, b"x" * 2_000)
    batch.put("timers", b"next", b"%08d" % number)
    store.write(batch)
    if number == 1_200:
        store.flush()
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 9
    with Store(tmp_path, FAMILIES, wal=False) as store:
        last = next(store.scan("jobs", reverse=True, limit=1))[0]
        assert last == store.get("timers", b"next")
        assert last >= b"00001200"


def test_a_second_opener_gets_a_readable_error(tmp_path: Path) -> None:
    with Store(tmp_path, FAMILIES), pytest.raises(StoreLocked, match="in use by another process"):
        Store(tmp_path, FAMILIES)


def test_a_flush_can_be_begun_and_waited_for(store: KeyValueStore) -> None:
    put(store, "jobs", a="1", b="2")
    store.start_flush()
    wait_for("it is flushed", lambda: not store.flushing)
    assert store.get("jobs", b"a") == b"1"


def test_a_look_takes_no_lock(tmp_path: Path) -> None:
    with Store(tmp_path / "live", FAMILIES) as live:
        put(live, "jobs", a="1")
        with Store(tmp_path / "live", FAMILIES, read_only=True) as look:
            assert look.get("jobs", b"a") == b"1"
            put(live, "jobs", a="2")
            assert look.get("jobs", b"a") == b"1"
        with pytest.raises(StoreLocked):
            Store(tmp_path / "live", FAMILIES)
    with pytest.raises(LogCorrupt):
        Store(tmp_path / "none", FAMILIES, read_only=True)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    with Store(tmp_path / "live", FAMILIES) as store:
        put(store, "jobs", a="1")
        with pytest.raises(DiskFailed, match="cannot be written"):
            store.checkpoint(str(tmp_path / "no" / "folder" / "here"))
        put(store, "jobs", a="2")
        store.checkpoint(str(tmp_path / "copy"))


def test_a_folder_can_be_held(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store(folder, FAMILIES), pytest.raises(StoreLocked), hold_folder(folder):
        pass
    with hold_folder(folder):
        opener = "import sys; from penstock.log.store import Store; Store(sys.argv[1], ('jobs', 'timers'))"
        found = subprocess.run([sys.executable, "-c", opener, folder], capture_output=True, check=False)
        assert b"StoreLocked" in found.stderr
    Store(folder, FAMILIES).close()


@pytest.mark.parametrize("wal", [True, False])
def test_a_checkpoint_is_a_store_of_its_own(tmp_path: Path, wal: bool) -> None:
    with Store(tmp_path / "live", FAMILIES, wal=wal) as store:
        put(store, "jobs", a="1")
        store.checkpoint(str(tmp_path / "copy"))
        put(store, "jobs", a="2")
        with Store(tmp_path / "copy", FAMILIES, wal=wal) as copy:
            assert copy.get("jobs", b"a") == b"1"
    with Store(tmp_path / "live", FAMILIES, wal=wal) as store:
        assert store.get("jobs", b"a") == b"2"


def test_sync_and_estimates(tmp_path: Path) -> None:
    for wal in (True, False):
        with Store(tmp_path / str(wal), FAMILIES, wal=wal) as store:
            batch = store.batch()
            batch.put("jobs", b"a", b"1")
            store.write(batch, sync=True)
            assert store.approximate_keys("jobs") == 1


def test_a_memory_store_can_be_dumped_and_loaded(tmp_path: Path) -> None:
    store = MemoryStore(FAMILIES)
    put(store, "jobs", a="1")
    content = store.dump()
    put(store, "jobs", a="2")
    assert MemoryStore.load(content).get("jobs", b"a") == b"1"
    store.checkpoint(str(tmp_path / "copy"))
    assert (tmp_path / "copy").stat().st_size > 0


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_damage_is_an_error_and_not_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reverse: bool
) -> None:
    with Store(tmp_path, FAMILIES) as store:
        put(store, "jobs", **{f"{number:05}": f"{number}" * 20 for number in range(3_000)})
        store.flush()
    table = max(tmp_path.glob("*.sst"), key=lambda path: path.stat().st_size)
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 0x40
    table.write_bytes(content)
    monkeypatch.setattr(store_module, "_caches", {})  # else the sound blocks are still in the process's cache
    with Store(tmp_path, FAMILIES) as store:
        with pytest.raises(LogCorrupt, match="damaged"):
            list(store.scan("jobs", reverse=reverse))
        assert len(list(store.scan("jobs", limit=5, reverse=reverse))) == 5


@pytest.mark.parametrize("wal", [True, False])
def test_a_disk_that_takes_no_more_is_a_readable_error(tmp_path: Path, wal: bool) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(tmp_path / "s", ("a",), wal=wal) as store:
        batch = store.batch()
        batch.put("a", b"k", os.urandom(200_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with pytest.raises(DiskFailed, match=r"cannot be written: .*File too large"):
                store.write(batch, sync=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_opened_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "s" / "LOCK").mkdir(parents=True)
    with pytest.raises(DiskFailed, match=f"The store in {tmp_path}/s cannot be opened"):
        Store(tmp_path / "s", ("a",))


def test_a_large_store_is_not_read_anew_for_each_key(tmp_path: Path) -> None:
    """Filters of large files are kept in parts: one whole is larger than a shard of the cache, and would be read again
    for every key. Counted are the bytes that this process reads, from wherever."""
    tuning = Tuning(block_cache_bytes=2 * 1024 * 1024)
    with Store(str(tmp_path), ("rows",), tuning=tuning) as store:
        for first in range(0, 600_000, 50_000):
            batch = store.batch()
            for number in range(first, first + 50_000):
                batch.put("rows", b"%012d" % (2 * number), b"")
            store.write(batch)
        store.flush()
        # What is new is never let go of: what is old is what counts.
        store._families["rows"]._rdict.compact_range(None, None)
    with Store(str(tmp_path), ("rows",), tuning=tuning) as store:
        before = _bytes_read()
        for number in range(1, 400_000, 2_000):
            assert store.get("rows", b"%012d" % number) is None
        assert _bytes_read() - before < 50 * 1024 * 1024


def _bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(fields["rchar"])
