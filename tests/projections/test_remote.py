from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.log.port import Log
from penstock.projections import protocol
from penstock.projections.connection import Connection
from penstock.projections.port import JobFilter, JobsQuery, Moment, ReadModel, SearchQuery
from penstock.projections.remote import RemoteReadModel
from penstock.projections.server import ReadServer
from penstock.projections.service import ProjectionService
from penstock.schemas.errors import (
    BadRequest,
    InvalidCursor,
    InvalidField,
    ReadBehind,
    ReadModelUnavailable,
)
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Serving, encode_messages
from penstock.schemas.position import Position
from penstock.schemas.times import text_time_ms
from penstock.schemas.topics import BROADCAST, Topics
from tests.projections.test_service import WAIT_MS, enqueue, highest
from tests.state.shelf import Shelf
from tests.waiting import until


@asynccontextmanager
async def process(
    log: Log, topics: Topics, folder: Path, name: str, partitions: Iterable[int] | None = None
) -> AsyncIterator[ReadServer]:
    """A projection process: its service and its server."""
    async with (
        ProjectionService(
            log, topics, folder / name, partitions=partitions, store_factory=Shelf()
        ) as service,
        ReadServer(service, log, name=name, incarnation="1") as server,
    ):
        yield server


@asynccontextmanager
async def memory_log(topics: Topics) -> AsyncIterator[MemoryLog]:
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        yield log


async def test_two_processes_answer_as_one(log: Log, topics: Topics, tmp_path: Path) -> None:
    """Against a projection of all partitions in this process, every answer is the same."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(process(log, topics, tmp_path, "a", [0, 1]))
        await stack.enter_async_context(process(log, topics, tmp_path, "b", [2, 3]))
        local: ReadModel = await stack.enter_async_context(
            ProjectionService(log, topics, tmp_path / "local", store_factory=Shelf())
        )
        remote: ReadModel = await stack.enter_async_context(RemoteReadModel(log, topics))
        positions = [
            await enqueue(
                log, topics, f"j{number}", payload=Raw(b'{"n": %d}' % number), queue=("a", "b")[number % 2]
            )
            for number in range(60)
        ]
        for partition in range(4):
            appended = await log.append(topics.jobs, partition, b"{}\n[]\nnull")
            positions.append(Position(partition, appended.offset, 2))
        for model in (local, remote):
            await model.wait(highest(positions), WAIT_MS)
        for query in (
            JobsQuery(),
            JobsQuery(limit=7),
            JobsQuery(queue="b", limit=1_000),
            JobsQuery(state="dead"),
        ):
            assert await remote.list_jobs(query) == await local.list_jobs(query)
        assert await remote.counts() == await local.counts()
        assert await remote.job("default", "j9") == await local.job("default", "j9")
        assert await remote.job("default", "nobody") is None
        assert await remote.history("default", "j9") == await local.history("default", "j9")
        assert await remote.history("default", "nobody") is None
        wanted = [(positions[number], "default", f"j{number}", f"enq.j{number}") for number in range(60)]
        assert await remote.verdicts(wanted, WAIT_MS) == await local.verdicts(wanted, WAIT_MS)
        page = await local.search(SearchQuery(limit=1_000))
        for at in (Moment(text_time_ms(page.items[30].created_at)), Moment(0), Moment(1 << 50, 1, 1 << 50)):
            query = SearchQuery(limit=1_000, at=at)
            assert await remote.search(query) == await local.search(query)
            assert await remote.counts("default", at) == await local.counts("default", at)
        assert sum(row.jobs for row in await remote.counts("default", Moment(0))) == 0
        mine, theirs = await local.status(), await remote.status()
        assert [(one.partition, one.digest, one.next_offset) for one in mine] == [
            (one.partition, one.digest, one.next_offset) for one in theirs
        ]
        await assert_same_pages(remote, local)


async def assert_same_pages(remote: ReadModel, local: ReadModel) -> None:
    found: list[list[str]] = []
    for model in (remote, local):
        listed: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await model.list_jobs(JobsQuery(limit=7, cursor=cursor))
            listed.extend(job.id for job in page.items)
            cursor = page.next_cursor
        lines: list[str] = []
        cursor = ""
        while cursor is not None:
            items, cursor = await model.quarantined(5, cursor)
            lines.extend(item.position for item in items)
        found.append([*listed, *lines])
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0]) == 72


async def test_errors_are_those_of_a_call_in_process(topics: Topics, tmp_path: Path) -> None:
    async with (
        memory_log(topics) as log,
        process(log, topics, tmp_path, "a"),
        RemoteReadModel(log, topics) as remote,
    ):
        with pytest.raises(ReadBehind) as caught:
            await remote.wait({1: Position(1, 4, 0)}, 1)
        assert caught.value.details["behind"][0]["lag_records"] == 5
        with pytest.raises(InvalidCursor):
            await remote.list_jobs(JobsQuery(cursor="nonsense!"))
        with pytest.raises(InvalidField):
            await remote.list_jobs(JobsQuery(limit=1_001))
        with pytest.raises(InvalidCursor):
            await remote.history("default", "j", 5, "x")
        with pytest.raises(ReadModelUnavailable):
            await remote.wait({77: Position(77, 4, 0)}, 1)


async def test_without_a_process_there_is_no_read_model(topics: Topics, tmp_path: Path) -> None:
    async with memory_log(topics) as log, RemoteReadModel(log, topics, patience_ms=1) as remote:
        with pytest.raises(ReadModelUnavailable) as caught:
            await remote.counts()
        assert caught.value.details["partitions"] == [0, 1, 2, 3]
        async with process(log, topics, tmp_path, "a", [0, 1]):
            await until_served(remote, "j", topics)
            with pytest.raises(ReadModelUnavailable) as caught:
                await remote.counts()
            assert caught.value.details["partitions"] == [2, 3]
        with pytest.raises(ReadModelUnavailable):
            await remote.job("default", job_in(0, topics))


def job_in(partition: int, topics: Topics) -> str:
    return next(f"j{n}" for n in range(1_000) if partition_of(f"j{n}", topics.partitions) == partition)


async def until_served(remote: RemoteReadModel, prefix: str, topics: Topics) -> None:
    for _ in range(1_000):
        try:
            await remote.job("default", job_in(0, topics))
            return
        except ReadModelUnavailable:
            await asyncio.sleep(0.01)
    raise AssertionError("never served")


async def test_another_process_takes_over_and_reads_do_not_go_back(topics: Topics, tmp_path: Path) -> None:
    """What was waited for at one process is waited for at the next, though that one began far behind."""
    async with memory_log(topics) as log, RemoteReadModel(log, topics) as remote:
        async with process(log, topics, tmp_path, "a"):
            position = await enqueue(log, topics, "j")
            await remote.wait({position.partition: position}, WAIT_MS)
            assert await remote.job("default", "j") is not None
        async with process(log, topics, tmp_path, "b"):
            for _ in range(3):
                assert await remote.job("default", "j") is not None
            assert (await remote.list_jobs(JobsQuery())).total == 1


async def test_a_process_that_ends_under_a_request_is_replaced(topics: Topics, tmp_path: Path) -> None:
    async with memory_log(topics) as log, RemoteReadModel(log, topics, patience_ms=10_000) as remote:
        async with process(log, topics, tmp_path, "a"):
            await remote.counts()
            waiting = asyncio.create_task(remote.wait({0: Position(0, 0, 0)}, WAIT_MS))
            await asyncio.sleep(0.01)
        async with process(log, topics, tmp_path, "b"):
            await log.append(topics.jobs, 0, b"{}")
            await waiting


async def test_a_process_that_is_announced_and_dead_is_passed_over(topics: Topics, tmp_path: Path) -> None:
    async with (
        memory_log(topics) as log,
        process(log, topics, tmp_path, "a"),
        RemoteReadModel(log, topics) as remote,
    ):
        furthest = dict.fromkeys(range(4), 1_000)
        dead = Serving(projection="dead", incarnation="1", address="127.0.0.1:1", partitions=furthest)
        await log.append(topics.signals, BROADCAST, encode_messages([dead]))
        assert await remote.counts() == []
        assert (await remote.list_jobs(JobsQuery())).items == []


async def test_one_that_folds_anew_is_not_asked_until_it_has_what_was_there(
    topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer with a part of what was acknowledged long ago."""
    gate = asyncio.Event()
    real = ProjectionService._fold

    async def held_up(service: ProjectionService, records: Any) -> None:
        await gate.wait()
        await real(service, records)

    async with memory_log(topics) as log:
        for number in range(20):
            await enqueue(log, topics, f"j{number}")
        monkeypatch.setattr(ProjectionService, "_fold", held_up)
        async with process(log, topics, tmp_path, "a"), RemoteReadModel(log, topics) as remote:
            with pytest.raises(ReadModelUnavailable):
                await remote.counts()
            gate.set()
            await until(lambda: len(remote._directory.cover(range(4), time.monotonic())[1]) == 0)
            assert sum(row.jobs for row in await remote.counts()) == 20


async def test_a_process_of_another_log_is_not_asked(topics: Topics, tmp_path: Path) -> None:
    async with memory_log(topics) as log, process(log, topics, tmp_path, "a") as server:
        hello = protocol.Hello(protocol.VERSION, "another", topics.jobs)
        with pytest.raises(ConnectionError, match="refused the greeting"):
            await Connection.open(server.address, hello)
        with pytest.raises(ConnectionError, match="no projection answers"):
            await Connection.open("127.0.0.1:1", hello)


async def greeted(server: ReadServer, topics: Topics) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection whose greeting is sent, and not yet answered."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(protocol.frame(protocol.Hello(protocol.VERSION, "memory", topics.jobs)))
    return reader, writer


async def test_what_is_no_request_is_answered_and_what_is_no_frame_ends_the_connection(
    topics: Topics, tmp_path: Path
) -> None:
    async with memory_log(topics) as log, process(log, topics, tmp_path, "a") as server:
        reader, writer = await greeted(server, topics)
        writer.write((2).to_bytes(4, "big") + b"{}")
        for code in (None, BadRequest.code):
            data = await protocol.read_frame(reader)
            assert data is not None
            problem = protocol.decode_response(data).problem
            assert (problem.code if problem else None) == code
        writer.write(b"\xff" * 8)
        assert await protocol.read_frame(reader) is None
        writer.close()
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write((5).to_bytes(4, "big") + b"GET /")
        data = await protocol.read_frame(reader)
        assert data is not None
        assert protocol.decode_response(data).problem is not None
        writer.close()


async def test_a_filter_of_a_newer_version_is_refused_whole_and_at_once(
    topics: Topics, tmp_path: Path
) -> None:
    """Without the field that it does not know, the search would find all jobs."""
    async with memory_log(topics) as log, process(log, topics, tmp_path, "a") as server:
        reader, writer = await greeted(server, topics)
        call = protocol.SearchJobs(SearchQuery(tenant="default", filter=JobFilter(batch=("b",))), [0])
        data = protocol.encode(protocol.Request(7, call))
        assert data.count(b'"batch"') == 1
        for line in (data, data.replace(b'"batch"', b'"newer"')):
            writer.write(len(line).to_bytes(4, "big") + line)
        responses = [protocol.decode_response(await protocol.read_frame(reader) or b"") for _ in range(3)]
        found, refused = sorted(responses[1:], key=lambda one: one.problem is not None)
        assert (found.id, found.problem) == (7, None)
        assert refused.id == 7
        assert refused.problem is not None
        assert refused.problem.code == BadRequest.code
        writer.close()


async def test_what_an_older_process_would_misread_is_asked_by_a_name_that_it_does_not_know(
    topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[type] = []
    real = ReadServer._answer

    async def noted(server: ReadServer, call: protocol.Call) -> Any:
        asked.append(type(call))
        return await real(server, call)

    monkeypatch.setattr(ReadServer, "_answer", noted)
    async with (
        memory_log(topics) as log,
        process(log, topics, tmp_path, "a"),
        RemoteReadModel(log, topics) as remote,
    ):
        at = Moment(text_time_ms("2026-01-01T00:00:00Z"))
        for wanted in (JobFilter(queue=("q",)), JobFilter(batch=("b",)), JobFilter(workflow=("w",))):
            await remote.search(SearchQuery(filter=wanted))
            await remote.search(SearchQuery(filter=wanted, at=at))
            await remote.outcomes([(Position(0, 0, 0), "default", "j")], wanted)
    newer = [protocol.SearchNewer, protocol.SearchNewer, protocol.GetOutcomesNewer]
    assert asked == [protocol.SearchJobs, protocol.SearchJobsAt, protocol.GetOutcomes, *newer, *newer]


async def test_a_read_that_breaks_is_answered_and_others_go_on(
    topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("the disk")

    async with (
        memory_log(topics) as log,
        process(log, topics, tmp_path, "a") as server,
        RemoteReadModel(log, topics) as remote,
    ):
        await remote.counts()
        monkeypatch.setattr(server._service, "counts", broken)
        with pytest.raises(ReadModelUnavailable, match="failed to answer"):
            await asyncio.wait_for(remote.counts(), 5)
        assert len(await remote.status()) == topics.partitions


async def test_an_answer_that_no_frame_holds_says_so(
    topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.projections.server.MOST_ANSWER_BYTES", 10)
    async with (
        memory_log(topics) as log,
        process(log, topics, tmp_path, "a"),
        RemoteReadModel(log, topics) as remote,
    ):
        with pytest.raises(InvalidField, match="fewer"):
            await remote.status()
        assert await remote.counts() == []


async def test_processes_of_the_past_are_forgotten(topics: Topics, tmp_path: Path) -> None:
    """They come back at other addresses."""
    async with memory_log(topics) as log, RemoteReadModel(log, topics) as remote:
        for number in range(4):
            async with process(log, topics, tmp_path, f"life-{number}"):
                await remote.counts()
        assert len(remote._connections) <= 2
        assert len(remote._connecting) <= 2


async def test_many_requests_are_under_way_on_one_connection(topics: Topics, tmp_path: Path) -> None:
    async with memory_log(topics) as log, process(log, topics, tmp_path, "a") as server:
        connection = await Connection.open(
            server.address, protocol.Hello(protocol.VERSION, "memory", topics.jobs)
        )
        slow = asyncio.create_task(connection.call(protocol.Wait({0: Position(0, 0, 0)}, WAIT_MS), 60))
        quick = await asyncio.gather(
            *(connection.call(protocol.GetJob("default", f"j{number}"), 20) for number in range(200))
        )
        assert [bytes(answer) for answer in quick] == [b"null"] * 200
        assert not slow.done()
        await log.append(topics.jobs, 0, b"{}")
        await slow
        await connection.close()
        with pytest.raises(ConnectionError):
            await connection.call(protocol.GetJob("default", "j"), 1)
