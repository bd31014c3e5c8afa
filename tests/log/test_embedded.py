"""What only the embedded log has to stand: its process killed, its files damaged, its disk failing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.log import store as store_module
from penstock.log.embedded import EmbeddedLog
from penstock.log.embedded_sync import AcknowledgedMark
from penstock.log.port import TopicSpec
from penstock.log.store import Store
from penstock.schemas.errors import (
    AppendRefused,
    AppendUnknown,
    LogCorrupt,
    LogUnavailable,
    OffsetTrimmed,
    StoreLocked,
)
from tests.log.reading import read, take
from tests.waiting import PATIENCE_S

JOBS = [TopicSpec("jobs", 3)]
ROOT = Path(__file__).resolve().parents[2]


async def fill(path: Path, count: int, *, size: int = 400) -> None:
    async with EmbeddedLog(path) as log:
        await log.ensure_topics(JOBS)
        await asyncio.gather(*(log.append("jobs", n % 3, b"%06d" % n + b"x" * size) for n in range(count)))


async def open_and_read_all(path: Path) -> None:
    async with EmbeddedLog(path) as log:
        await read(log, {("jobs", number): 0 for number in range(3)})


def wal_of(path: Path) -> Path:
    return max((path / "log").glob("*.log"))


def crash_copy(path: Path, copy: Path) -> Path:
    """The folder as a crash at this moment would leave it: a copy taken while it is open, without the lock."""
    shutil.copytree(path, copy)
    return copy


@pytest.mark.slow
async def test_kill_in_mid_append_loses_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: dict[tuple[int, int], bytes] = {}
    for life in range(4):
        command = [sys.executable, "-m", "tests.log.embedded_child", str(tmp_path / "log"), str(life)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(150 + 60 * life)]
        child.kill()
        lines += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        child.wait()
        for line in lines:
            if line.endswith(b"\n"):
                partition, offset, body = line.split()
                acknowledged[int(partition), int(offset)] = body

    async with EmbeddedLog(tmp_path / "log") as log:
        records = await read(log, {("jobs", number): 0 for number in range(3)})
    found = {(record.partition, record.offset): record.value for record in records}
    assert len(acknowledged) > 500
    assert all(found[where].startswith(body) for where, body in acknowledged.items())
    last: dict[bytes, int] = {}
    for record in sorted(records, key=lambda record: (record.partition, record.offset)):
        life, writer, number, filler = record.value.split(b":")
        assert filler == b"x" * (int(number) * 37 % 5_000), "half a record"
        assert int(number) == last.get(life + writer, -1) + 1, (
            "a writer's records are in order, without a gap"
        )
        last[life + writer] = int(number)


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    hints = TopicSpec("signals", 1, durable=False, retention_ms=60_000)
    async with EmbeddedLog(tmp_path) as log:
        await log.ensure_topics([*JOBS, hints])
        appended = await log.append("jobs", 2, b"one", key=b"k", headers=(("h", b"v"),))
        await log.append("jobs", 2, b"two")
        await log.append("jobs", 1, b"gone")
        await log.truncate("jobs", 1, 1)
        signal = await log.append("signals", 0, b"hint")
        cluster_id = log.cluster_id
        before = await read(log, {("jobs", 2): 0})
    async with EmbeddedLog(tmp_path) as log:
        assert log.cluster_id == cluster_id
        assert await read(log, {("jobs", 2): 0}) == before
        assert await log.bounds("jobs", 1) == (1, 1)
        assert (await log.append("jobs", 2, b"three")).offset == appended.offset + 2
        assert (await log.append("signals", 0, b"hint")).offset > signal.offset
    async with EmbeddedLog(tmp_path / "other") as log:
        assert log.cluster_id != cluster_id


async def test_offset_at_over_many_blocks_with_a_clock_that_steps_back(tmp_path: Path) -> None:
    clock = [1_000]
    async with EmbeddedLog(tmp_path, now_ms=lambda: clock[0], fsync="none") as log:
        await log.ensure_topics(JOBS)
        times: list[int] = []
        for number in range(1_300):
            clock[0] += -40 if number % 500 == 499 else 1
            times.append(clock[0])
            await log.append("jobs", 0, b"x")
        await log.truncate("jobs", 0, 100)
        for wanted in (0, 1_050, 1_100, 1_255, 1_256, 1_499, 1_800, times[-1], times[-1] + 1, 9_999):
            expected = next((at for at, stamp in enumerate(times) if at >= 100 and stamp >= wanted), 1_300)
            assert await log.offset_at("jobs", 0, wanted) == expected
    async with EmbeddedLog(tmp_path, now_ms=lambda: clock[0]) as log:
        assert await log.offset_at("jobs", 0, times[1_290]) == times.index(times[1_290], 100)


async def test_a_second_opener_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    async with EmbeddedLog(tmp_path) as log:
        await log.ensure_topics(JOBS)
        with pytest.raises(StoreLocked, match="in use by another process"):
            await EmbeddedLog(tmp_path).__aenter__()
        code = "import asyncio,sys; from penstock.log.embedded import EmbeddedLog as E\n"
        code += "asyncio.run(E(sys.argv[1]).__aenter__())"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(tmp_path), stderr=subprocess.PIPE, cwd=ROOT
        )
        _, errors = await child.communicate()
        assert b"StoreLocked" in errors
        await log.append("jobs", 0, b"still mine")
    async with EmbeddedLog(tmp_path) as log:
        assert (await log.bounds("jobs", 0)).end == 1


async def test_a_failing_sync_ends_the_log_for_good(tmp_path: Path) -> None:
    failing = False
    ends: list[BaseException] = []

    def sync_file(fd: int) -> None:
        if failing:
            raise OSError(5, "Input/output error")
        os.fsync(fd)

    async with EmbeddedLog(tmp_path, sync_file=sync_file, on_fatal=ends.append) as log:
        await log.ensure_topics(JOBS)
        await log.append("jobs", 0, b"good")
        async with log.tail({("jobs", 0): 0}) as tail:
            assert len(await take(tail, 1)) == 1
            polling = asyncio.create_task(tail.poll(60_000))
            failing = True
            outcomes = await asyncio.gather(
                *(log.append("jobs", 0, b"lost?") for _ in range(3)), return_exceptions=True
            )
            assert all(isinstance(outcome, AppendUnknown) for outcome in outcomes)
            assert len(ends) == 1
            failing = False
            with pytest.raises(AppendRefused, match="failed"):
                await log.append("jobs", 0, b"never")
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(LogUnavailable):
                    await polling


async def test_readers_stop_at_the_synced_mark(tmp_path: Path) -> None:
    """B4: a record that is written but not synced is not seen."""
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()
    let_go = asyncio.Event()
    hold = False

    def sync_file(fd: int) -> None:
        if hold:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(let_go.wait(), loop).result(PATIENCE_S)
        os.fsync(fd)

    async with EmbeddedLog(tmp_path, sync_file=sync_file) as log:
        await log.ensure_topics(JOBS)
        async with log.tail({("jobs", 0): 0}) as tail:
            hold = True
            appending = asyncio.create_task(log.append("jobs", 0, b"x"))
            await asyncio.wait_for(entered.wait(), PATIENCE_S)
            assert list(await tail.poll(20)) == []
            assert (await log.bounds("jobs", 0)).end == 0
            assert not appending.done()
            let_go.set()
            assert [record.value for record in await take(tail, 1)] == [b"x"]
            await appending


async def test_appends_during_a_sync_share_the_next_one(tmp_path: Path) -> None:
    syncs = 0

    def sync_file(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        os.fsync(fd)

    async with EmbeddedLog(tmp_path, sync_file=sync_file) as log:
        await log.ensure_topics(JOBS)
        await log.append("jobs", 0, b"x")
        syncs = 0
        await asyncio.gather(*(log.append("jobs", number % 3, b"x") for number in range(500)))
    assert syncs <= 3


async def test_fsync_none_never_syncs(tmp_path: Path) -> None:
    def sync_file(fd: int) -> None:
        raise AssertionError("synced")

    async with EmbeddedLog(tmp_path, fsync="none", sync_file=sync_file) as log:
        await log.ensure_topics(JOBS)
        await log.append("jobs", 0, b"x")
        assert len(await read(log, {("jobs", 0): 0})) == 1


async def test_a_torn_tail_that_nobody_was_promised_is_forgiven(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "live", fsync="none")
    async with log:
        await log.ensure_topics(JOBS)
        for number in range(50):
            await log.append("jobs", 0, b"%d" % number + b"x" * 100)
        crashed = crash_copy(tmp_path / "live", tmp_path / "crashed")
    os.truncate(wal_of(crashed), wal_of(crashed).stat().st_size - 30)
    async with EmbeddedLog(crashed) as log:
        assert [record.offset for record in await read(log, {("jobs", 0): 0})] == list(range(49))
        assert (await log.append("jobs", 0, b"on")).offset == 49


async def test_a_tail_that_was_acknowledged_must_not_be_missing(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "live")
    async with log:
        await log.ensure_topics(JOBS)
        for number in range(50):
            await log.append("jobs", 0, b"%d" % number + b"x" * 100)
        crashed = crash_copy(tmp_path / "live", tmp_path / "crashed")
    os.truncate(wal_of(crashed), wal_of(crashed).stat().st_size - 30)
    with pytest.raises(LogCorrupt, match=r"49 records but acknowledged 50"):
        await EmbeddedLog(crashed).__aenter__()


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
async def test_a_flipped_byte_in_the_write_ahead_file_is_refused(tmp_path: Path, place: float) -> None:
    log = EmbeddedLog(tmp_path / "live", fsync="none")
    async with log:
        await log.ensure_topics(JOBS)
        for number in range(300):
            await log.append("jobs", 0, b"%d" % number + b"x" * 400)
        crashed = crash_copy(tmp_path / "live", tmp_path / "crashed")
    flip(wal_of(crashed), place)
    with pytest.raises(LogCorrupt):
        await EmbeddedLog(crashed).__aenter__()


async def test_a_flipped_byte_in_a_table_is_an_error_and_not_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path, 3_000)
    # Opening and closing bring the records from the write-ahead file into tables.
    async with EmbeddedLog(tmp_path):
        pass
    table = max((tmp_path / "log").glob("*.sst"), key=lambda path: path.stat().st_size)
    flip(table, 0.3)
    monkeypatch.setattr(store_module, "_caches", {})  # else the sound blocks are still in the process's cache
    with pytest.raises(LogCorrupt):
        await open_and_read_all(tmp_path)


async def test_a_record_whose_own_checksum_fails_is_an_error(tmp_path: Path) -> None:
    await fill(tmp_path, 9)
    with Store(tmp_path / "log", ("records", "times", "meta")) as store:
        key, stored = list(store.scan("records"))[4]
        batch = store.batch()
        batch.put("records", key, stored[:-1] + b"!")
        store.write(batch)
    async with EmbeddedLog(tmp_path) as log:
        with pytest.raises(LogCorrupt, match=r"jobs-1 offset 1 is damaged"):
            await read(log, {("jobs", number): 0 for number in range(3)})


async def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    await fill(tmp_path, 9)
    with Store(tmp_path / "log", ("records", "times", "meta")) as store:
        batch = store.batch()
        batch.delete("records", list(store.scan("records"))[4][0])
        store.write(batch)
    async with EmbeddedLog(tmp_path) as log:
        with pytest.raises(LogCorrupt, match=r"jobs-1 has no readable record at offset 1"):
            await read(log, {("jobs", number): 0 for number in range(3)})


async def test_a_full_disk_refuses_before_it_fails(tmp_path: Path) -> None:
    async with EmbeddedLog(tmp_path, reserve_bytes=1 << 60) as log:
        await log.ensure_topics(JOBS)
        with pytest.raises(AppendRefused, match="full"):
            await log.append("jobs", 0, b"x")


async def test_a_disk_that_others_fill_is_noticed_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("penstock.log.embedded_commit._SPACE_CHECK_S", 0.0)
    free = os.statvfs(tmp_path)
    full = os.statvfs_result((*free[:4], 0, *free[5:]))
    async with EmbeddedLog(tmp_path, reserve_bytes=1) as log:
        await log.ensure_topics(JOBS)
        await log.append("jobs", 0, b"first")
        with monkeypatch.context() as filled:
            filled.setattr(os, "statvfs", lambda path: full)
            for _ in range(2):
                with pytest.raises(AppendRefused, match="full"):
                    await log.append("jobs", 0, b"second")
        await log.append("jobs", 0, b"third")
    assert [record.levelname for record in caplog.records if "The disk of" in record.message] == [
        "ERROR",
        "INFO",
    ]


async def test_a_failing_write_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[BaseException] = []

    def write(self: Store, batch: object, *, sync: bool = False) -> None:
        raise OSError(28, "No space left on device")

    async with EmbeddedLog(tmp_path, on_fatal=ends.append) as log:
        await log.ensure_topics(JOBS)
        monkeypatch.setattr(Store, "write", write)
        with pytest.raises(AppendUnknown):
            await log.append("jobs", 0, b"x")
        with pytest.raises(AppendRefused):
            await log.append("jobs", 0, b"x")
        assert len(ends) == 1


async def test_hints_are_forgotten_by_size_and_by_age(tmp_path: Path) -> None:
    clock = [1_000_000]
    hints = TopicSpec("signals", 1, durable=False, retention_ms=1_000)
    async with EmbeddedLog(tmp_path, now_ms=lambda: clock[0], ring_bytes=10_000) as log:
        await log.ensure_topics([hints])
        first = (await log.append("signals", 0, b"x" * 1_000)).offset
        for _ in range(20):
            await log.append("signals", 0, b"x" * 1_000)
        start, end = await log.bounds("signals", 0)
        assert (end - first, end - start) == (21, 8)
        assert len(await read(log, {("signals", 0): start})) == 8
        assert len(await read(log, {("signals", 0): end - 2})) == 2
        async with log.tail({("signals", 0): first}) as tail:
            with pytest.raises(OffsetTrimmed):
                await tail.poll(0)
        clock[0] += 2_000
        await log.append("signals", 0, b"new")
        assert [record.value for record in await read(log, {("signals", 0): end})] == [b"new"]
        assert await log.bounds("signals", 0) == (end, end + 1)


def test_the_mark_survives_and_a_torn_one_counts_for_nothing(tmp_path: Path) -> None:
    mark = AcknowledgedMark(tmp_path / "mark")
    assert mark.read() == 0
    mark.write(1 << 40)
    assert mark.read() == 1 << 40
    os.truncate(tmp_path / "mark", 7)
    assert mark.read() == 0
    mark.close()


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x40
    path.write_bytes(content)
