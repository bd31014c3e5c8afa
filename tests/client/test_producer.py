"""Producing straight onto the log, and putting refused lines back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.client.producer import LogProducer
from penstock.client.redrive import line_at, record_at, redriven
from penstock.client.requests import request_hash
from penstock.core.partition import PartitionFold
from penstock.log.blobs import open_blobs
from penstock.log.claims import ClaimStore
from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.log.port import Log
from penstock.schemas.claims import claim_of
from penstock.schemas.codec import decode_line
from penstock.schemas.errors import InvalidField, NotFound, TooLarge
from penstock.schemas.events import Enqueued
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics

TOPICS = Topics(partitions=3, work_partitions=2)


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    async with MemoryLog() as memory:
        await open_namespace(memory, TOPICS)
        yield memory


async def test_a_job_stands_in_its_own_partition(log: Log):
    async with LogProducer(log, TOPICS, actor="me", clock_ms=lambda: 7) as producer:
        produced = await producer.enqueue("resize", {"width": 3}, queue="images")
    assert produced.position.partition == partition_of(produced.id, 3)
    event = decode_line(await line_at(log, TOPICS, produced.position))
    assert isinstance(event, Enqueued)
    assert (event.job, event.id, event.actor, event.at) == (produced.id, f"enq.{produced.id}", "me", 7)
    assert (event.job_type, event.queue, bytes(event.payload)) == ("resize", "images", b'{"width":3}')
    assert event.request_hash == request_hash({"type": "resize", "payload": {"width": 3}, "queue": "images"})


async def test_the_same_id_again_is_a_duplicate_for_the_fold(log: Log):
    async with LogProducer(log, TOPICS) as producer:
        first = await producer.enqueue("t", 1, id="a")
        second = await producer.enqueue("t", 1, id="a")
        other = await producer.enqueue("t", 2, id="a")
    rows: dict[bytes, bytes] = {}
    fold = PartitionFold(first.position.partition, 3, rows.get)
    outcomes: list[str] = []
    for position in (first.position, second.position, other.position):
        record = await record_at(log, TOPICS, position.partition, position.offset)
        outcomes += [line.outcome for line in fold.fold(record.offset, record.time_ms, True, record.value)]
    assert outcomes[:2] == ["applied", "duplicate"]
    assert outcomes[2] != "applied"


async def test_many_jobs_come_back_in_their_order(log: Log):
    requests = [{"type": "t", "payload": number, "id": f"j{number}"} for number in range(40)]
    async with LogProducer(log, TOPICS) as producer:
        produced = await producer.enqueue_many(requests)
    assert [one.id for one in produced] == [f"j{number}" for number in range(40)]
    for number, one in enumerate(produced):
        event = decode_line(await line_at(log, TOPICS, one.position))
        assert isinstance(event, Enqueued)
        assert (event.job, bytes(event.payload)) == (f"j{number}", str(number).encode())


async def test_of_many_none_is_written_when_one_is_wrong(log: Log):
    async with LogProducer(log, TOPICS, max_payload_bytes=10) as producer:
        with pytest.raises(TooLarge):
            await producer.enqueue_many([{"type": "t"}, {"type": "t", "payload": "x" * 20}])
        with pytest.raises(InvalidField):
            await producer.enqueue_many([{"type": "t"}, {"type": "a b"}])
    ends = [(await log.bounds(TOPICS.jobs, partition)).end for partition in range(3)]
    assert ends == [0, 0, 0]


async def test_large_payloads_lie_beside_the_log(log: Log, tmp_path: Path):
    claims = ClaimStore(open_blobs(str(tmp_path)), max_bytes=1_000)
    large, too_large = "x" * 500, "x" * 1_000
    async with LogProducer(log, TOPICS, max_payload_bytes=100, claims=claims) as producer:
        produced = [await producer.enqueue("t", large, id="one")]
        produced += await producer.enqueue_many([{"type": "t", "payload": text} for text in ("y", large)])
        with pytest.raises(TooLarge):
            await producer.enqueue("t", too_large)
    bodies: list[bytes] = []
    for one in produced:
        event = decode_line(await line_at(log, TOPICS, one.position))
        assert isinstance(event, Enqueued)
        claim = claim_of(event.payload)
        bodies.append(
            bytes(event.payload) if claim is None else await claims.read(event.tenant, one.id, claim)
        )
    assert [json.loads(body) for body in bodies] == [large, "y", large]


@pytest.mark.parametrize("position", [Position(3, 0, 0), Position(0, 5, 0), Position(0, 0, 2)])
async def test_a_line_that_is_not_there(log: Log, position: Position):
    await log.append(TOPICS.jobs, 0, b"one\ntwo")
    with pytest.raises(NotFound):
        await line_at(log, TOPICS, position)
    assert await line_at(log, TOPICS, Position(0, 0, 1)) == b"two"


class TestRedriven:
    def test_a_corrected_line_goes_where_its_job_lives(self):
        line = b' {"type":"Enqueued","job":"a","job_type":"t"}\n'
        assert redriven(line, 3) == (partition_of("a", 3), line.strip())

    @pytest.mark.parametrize(
        "line",
        [
            b"", b"nonsense", b"\xff", b'{"type":"Nothing"}', b'{"type":"Enqueued","job":"a"}',
            b'{"type":"LeaderAnnounced","id":"x","orchestrator":"o","incarnation":"i","supersedes":-1}',
            b'{"type":"Leased","id":"x","job":"a","worker":"w","attempt":1,"lease_ms":1,"seen":0}',
            b'{"type":"Enqueued","job":"a",\n"job_type":"t"}',
        ],
        ids=["empty", "not json", "not utf-8", "unknown", "incomplete", "of the partition", "a leader's", "two lines"],
    )  # fmt: skip
    def test_what_may_not_be_put_back(self, line: bytes):
        with pytest.raises(InvalidField):
            redriven(line, 3)
