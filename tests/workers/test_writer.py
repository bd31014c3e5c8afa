"""Writing outcomes until they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from penstock.log.bundler import Bundler, LinePosition
from penstock.log.memory import MemoryLog
from penstock.log.port import TopicSpec
from penstock.schemas.errors import AppendUnknown, LeaseLost, LogError, RecordTooLarge
from penstock.workers.lease import HeldLease
from penstock.workers.writer import AwaitedLine, OutcomeWriter
from tests.waiting import until
from tests.workers.fakes import delivery


class Bundles:
    """Writes, or fails as the test says."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.errors: list[LogError] = []
        self.max_bytes = 1_000
        self.open = asyncio.Event()
        self.open.set()

    async def append_many(self, partition: int, lines: Sequence[bytes]) -> list[LinePosition]:
        await self.open.wait()
        self.calls.append(list(lines))
        if self.errors:
            raise self.errors.pop(0)
        if max(map(len, lines)) > self.max_bytes:
            raise RecordTooLarge("too large")
        return [LinePosition(len(self.calls), number, 0) for number in range(len(lines))]

    async def flush(self) -> None:
        await asyncio.sleep(3_600)


def outcome(line: bytes) -> HeldLease:
    lease = HeldLease(delivery(), 0.0)
    lease.line = line
    return lease


async def test_what_comes_while_one_is_on_its_way_goes_together() -> None:
    bundles = Bundles()
    writer = OutcomeWriter(bundles)
    bundles.open.clear()
    first = asyncio.create_task(writer.append(0, b"1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(writer.append(0, b"%d" % number)) for number in (2, 3)]
    await asyncio.sleep(0)
    assert writer.waiting() == 3
    bundles.open.set()
    assert (await first).line_no == 0
    assert [(await other).line_no for other in others] == [0, 1]
    assert bundles.calls == [[b"1"], [b"2", b"3"]]
    assert await writer.flush(1_000) == 0


async def test_a_failed_write_is_repeated_with_the_same_lines() -> None:
    bundles = Bundles()
    bundles.errors = [AppendUnknown("lost"), LogError("away")]
    writer = OutcomeWriter(bundles)
    await writer.append(0, b"1")
    assert bundles.calls == [[b"1"]] * 3


async def test_an_outcome_of_a_lost_lease_is_not_worth_a_second_try() -> None:
    bundles = Bundles()
    bundles.errors = [AppendUnknown("lost")]
    writer = OutcomeWriter(bundles)
    lease = outcome(b"1")
    writer.put(0, lease)
    lease.lost_reason = "ended"
    assert await writer.flush(5_000) == 0
    assert bundles.calls == [[b"1"]]


async def test_one_line_that_is_too_large_does_not_hold_up_the_others() -> None:
    bundles = Bundles()
    writer = OutcomeWriter(bundles)
    large = outcome(b"x" * 2_000)
    lines = [AwaitedLine(b"1"), AwaitedLine(b"2")]
    writer.put(0, lines[0])
    writer.put(0, large)
    writer.put(0, lines[1])
    assert await writer.flush(5_000) == 0
    assert all(line.done.done() for line in lines)
    assert large.renew_until_ms < 0, "named no more, it runs out"


async def test_one_line_that_cannot_be_a_line_does_not_hold_up_the_others() -> None:
    async with MemoryLog() as log:
        await log.ensure_topics([TopicSpec("jobs", 1)])
        writer = OutcomeWriter(Bundler(log, "jobs"))
        torn, whole = outcome(b"a\nb"), AwaitedLine(b"1")
        writer.put(0, torn)
        writer.put(0, whole)
        assert await writer.flush(5_000) == 0
        assert (whole.done.result().offset, torn.renew_until_ms < 0) == (0, True)


async def test_flush_tells_what_is_not_written_in_time() -> None:
    bundles = Bundles()
    bundles.open.clear()
    writer = OutcomeWriter(bundles)
    writer.put(0, outcome(b"1"))
    writer.put(1, outcome(b"2"))
    assert await writer.flush(10) == 2
    await writer.close()


async def test_closing_tells_those_who_wait() -> None:
    bundles = Bundles()
    bundles.open.clear()
    writer = OutcomeWriter(bundles)
    waiting = asyncio.create_task(writer.append(0, b"1"))
    await until(writer.waiting)
    await writer.close()
    with pytest.raises(LeaseLost):
        await waiting


async def test_who_stops_waiting_is_not_written_for_again() -> None:
    bundles = Bundles()
    bundles.errors = [AppendUnknown("lost")]
    writer = OutcomeWriter(bundles)
    waiting = asyncio.create_task(writer.append(0, b"1"))
    await until(lambda: bundles.calls)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await writer.flush(5_000) == 0
