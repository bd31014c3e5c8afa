"""When a tail decides that no broker answers: by what is heard, on a clock that does not jump."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import Any

import pytest

from penstock.log.kafka_options import KafkaOptions
from penstock.log.kafka_tail import KafkaTail
from penstock.log.port import Bounds
from penstock.schemas.errors import LogUnavailable

SILENCE_MS = 1_000
POLL_MS = 10


class _Consumer:
    """An empty topic. ``stamps`` are the times of the brokers' answers, as the consumer tells them."""

    def __init__(self, stamps: Iterator[int | None]) -> None:
        self.stamps = stamps
        self.stopped_s = 0.0
        self.during_poll: Callable[[], None] = lambda: None
        self.assigned: set[Any] = set()

    def assign(self, partitions: Any) -> None:
        self.assigned = set(partitions)

    def seek(self, partition: Any, offset: int) -> None: ...

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[Any, Any]:
        time.sleep(self.stopped_s)  # as SIGSTOP would: nothing else runs meanwhile
        self.stopped_s = 0.0
        await asyncio.sleep(timeout_ms / 1000)
        self.during_poll()
        return {}

    def last_poll_timestamp(self, partition: Any) -> int | None:
        assert partition in self.assigned, "aiokafka refuses to tell of a partition that it does not follow"
        return next(self.stamps)


class _Bounds:
    async def bounds(self, topic: str, partition: int) -> Bounds:
        raise AssertionError("nobody asks")

    names = frozenset({"jobs"})

    async def topic_names(self) -> frozenset[str]:
        return self.names


def _tail(stamps: Iterator[int | None]) -> tuple[KafkaTail, _Consumer]:
    tail = KafkaTail(KafkaOptions(bootstrap="nowhere:1", silence_ms=SILENCE_MS), _Bounds(), {("jobs", 0): 7})
    consumer = _Consumer(stamps)
    tail._consumer = consumer
    return tail, consumer


async def _poll_for(tail: KafkaTail, ms: float) -> None:
    until = time.monotonic() + ms / 1000
    while time.monotonic() < until:
        assert await tail.poll(POLL_MS) == []


@pytest.mark.parametrize("stamp", [None, 1_700_000_000_000, 9_900_000_000_000])
async def test_silence_is_noticed_whatever_the_wall_clock_said_last(stamp: int | None) -> None:
    tail, _ = _tail(iter(lambda: stamp, "never"))
    with pytest.raises(LogUnavailable, match="No broker has answered about jobs-0"):
        await _poll_for(tail, 20 * SILENCE_MS)


async def test_answers_count_also_when_their_clock_jumps_about() -> None:
    jumping = (stamp * (-1) ** stamp for stamp in count(1_700_000_000_000))
    tail, _ = _tail(jumping)
    await _poll_for(tail, 2 * SILENCE_MS)


async def test_what_is_followed_may_change_during_a_poll() -> None:
    tail, consumer = _tail(count())
    consumer.during_poll = lambda: tail.follow("jobs", 1, 0)
    assert await tail.poll(POLL_MS) == []
    consumer.during_poll = lambda: tail.drop("jobs", 0)
    assert await tail.poll(POLL_MS) == []
    consumer.during_poll = lambda: None
    assert await tail.poll(POLL_MS) == []
    assert {(where.topic, where.partition) for where in consumer.assigned} == {("jobs", 1)}


async def test_a_process_that_was_stopped_listens_again_before_it_complains() -> None:
    tail, consumer = _tail(iter(lambda: 1, 2))
    await _poll_for(tail, SILENCE_MS / 5)
    consumer.stopped_s = 2 * SILENCE_MS / 1000
    assert await tail.poll(POLL_MS) == []
    with pytest.raises(LogUnavailable):
        await _poll_for(tail, 20 * SILENCE_MS)


async def test_a_topic_that_was_deleted_is_told_from_brokers_that_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Bounds, "names", frozenset({"signals"}))
    tail, _ = _tail(repeat(None))
    with pytest.raises(LogUnavailable, match="Topic 'jobs' is gone"):
        await _poll_for(tail, 10 * SILENCE_MS)
