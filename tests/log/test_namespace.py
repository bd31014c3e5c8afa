"""What the control topic says of a namespace: its shape, whether it is a copy, which rules are wanted; who is alive."""

from __future__ import annotations

import pytest

from penstock.core.rules import RULES, newest
from penstock.log.hearing import Heard, listen
from penstock.log.memory import MemoryLog
from penstock.log.namespace import (
    LogShape,
    ask_for_rules,
    begin_namespace,
    control_records,
    is_sealed,
    open_namespace,
    read_shape,
    seal_namespace,
    wanted_rules,
)
from penstock.log.port import Record
from penstock.schemas.errors import LogCopying, TopicMismatch, UnknownRules
from penstock.schemas.messages import Beat, Echo, Heartbeat, Serving, encode_messages
from penstock.schemas.topics import Topics

TOPICS = Topics(partitions=2, work_partitions=2)
COPY = LogShape(2, 3, "cluster/topic", "topic of log cluster")


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


async def test_the_first_line_holds_for_ever(log: MemoryLog) -> None:
    assert (await open_namespace(log, TOPICS)).generation == 0
    assert await begin_namespace(log, TOPICS, COPY) == LogShape(2, rules=newest(RULES))
    with pytest.raises(TopicMismatch):
        await open_namespace(log, Topics(partitions=3, work_partitions=2))


async def test_it_follows_the_rules_it_was_made_with(log: MemoryLog) -> None:
    made = await open_namespace(log, TOPICS, rules=7)
    assert made.rules == 7
    assert (await open_namespace(log, TOPICS, rules=8)).rules == 7
    [record] = [record async for record in control_records(log, TOPICS)]
    assert wanted_rules(record.value) == 7
    with pytest.raises(
        UnknownRules, match=r"made with rules 7, and this program knows none above 6: upgrade"
    ):
        await open_namespace(log, TOPICS, rules=6)


@pytest.mark.parametrize(
    "value", [b"junk", b'{"type":"LeaderAnnounced"}', b'{"type":"Due","id":"d","job":"j","seen":1}']
)
async def test_a_control_topic_that_says_something_else_first(log: MemoryLog, value: bytes) -> None:
    await open_namespace(log, TOPICS)
    other = MemoryLog()
    await other.ensure_topics(list(log.topics.specs.values()))
    with pytest.raises(TopicMismatch, match="is empty"):
        await read_shape(other, TOPICS)
    await other.append(TOPICS.control, 0, value)
    with pytest.raises(TopicMismatch, match="first line"):
        await open_namespace(other, TOPICS)


async def test_a_copy_is_closed_until_it_is_sealed(log: MemoryLog) -> None:
    assert await begin_namespace(log, TOPICS, COPY) == COPY
    for number in range(TOPICS.partitions):
        await log.append(TOPICS.jobs, number, b"copied")
    with pytest.raises(LogCopying, match="copied from topic of log cluster"):
        await open_namespace(log, TOPICS)
    await seal_namespace(log, TOPICS, LogShape(2, 3, "another"), 1)
    await log.append(TOPICS.control, 0, b"junk\n{}")
    assert not await is_sealed(log, TOPICS, COPY)
    await seal_namespace(log, TOPICS, COPY, 1)
    assert (await open_namespace(log, TOPICS)).generation == 3


async def test_the_highest_rules_that_were_ever_asked_for_are_wanted(log: MemoryLog) -> None:
    await open_namespace(log, TOPICS)
    for version in (2, 4, 3):
        await ask_for_rules(log, TOPICS, version, "test")
    wanted = [wanted_rules(record.value) async for record in control_records(log, TOPICS)]
    assert wanted == [newest(RULES), 2, 4, 3]
    assert wanted_rules(b'junk\n{"type":"Configured","id":"c","settings":{"rules":"many"}}') == 0


async def test_control_is_read_over_gaps(log: MemoryLog) -> None:
    await open_namespace(log, TOPICS)
    log.topics.skip_offsets(TOPICS.control, 0, 3)
    await ask_for_rules(log, TOPICS, 2, "test")
    assert len([record async for record in control_records(log, TOPICS)]) == 2


def test_the_newest_word_of_each_counts_and_who_leaves_is_gone() -> None:
    heard = Heard()

    def say(topic: str, *messages: object) -> None:
        heard.take(Record(topic, 0, 0, 1, True, None, encode_messages(list(messages))), TOPICS)

    say(TOPICS.signals, Beat(orchestrator="o1", incarnation="a"), Beat(orchestrator="o2", incarnation="b"))
    say(TOPICS.signals, Serving(projection="p", incarnation="p", address="x"))
    say(TOPICS.workers, Heartbeat(worker="w1", seq=1), Echo(orchestrator="o1", incarnation="a", at=1))
    say(TOPICS.workers, Heartbeat(worker="w2", incarnation="i", seq=1))
    assert heard.names() == ["orchestrator o1", "orchestrator o2", "projection p", "worker w1", "worker w2"]
    say(
        TOPICS.signals,
        Beat(orchestrator="o2", incarnation="b", leaving=True),
        Beat(orchestrator="o1", incarnation="a", rules=2),
    )
    say(TOPICS.signals, Serving(projection="p", incarnation="p", address="x", leaving=True))
    say(TOPICS.workers, Heartbeat(worker="w1", seq=2, leaving=True))
    assert (heard.names(), heard.orchestrators["a"].rules) == (["orchestrator o1", "worker w2"], 2)


async def test_only_what_is_said_from_now_on_is_heard(log: MemoryLog) -> None:
    await open_namespace(log, TOPICS)
    await log.append(TOPICS.signals, 0, encode_messages([Beat(orchestrator="o", incarnation="i")]))
    assert (await listen(log, TOPICS, 20)).names() == []


@pytest.mark.parametrize("name", [TOPICS.jobs, TOPICS.quarantine])
async def test_a_topic_that_is_gone_is_not_made_anew(log: MemoryLog, name: str) -> None:
    await open_namespace(log, TOPICS)
    del log.topics.specs[name]
    for _ in range(2):
        with pytest.raises(TopicMismatch, match=f"'{name}' was there and is gone"):
            await open_namespace(log, TOPICS)
    assert name not in await log.topic_names()


async def test_topics_of_hints_may_be_made_anew(log: MemoryLog) -> None:
    await open_namespace(log, TOPICS)
    del log.topics.specs[TOPICS.signals]
    await open_namespace(log, TOPICS)
    assert TOPICS.signals in await log.topic_names()


async def test_a_copy_whose_topic_was_made_anew_is_refused(log: MemoryLog) -> None:
    shape = await begin_namespace(log, TOPICS, COPY)
    for number in range(TOPICS.partitions):
        await log.append(TOPICS.jobs, number, b"copied")
    await seal_namespace(log, TOPICS, shape, shape.rules)
    assert (await open_namespace(log, TOPICS)).generation == COPY.generation
    empty = MemoryLog()
    await begin_namespace(empty, TOPICS, COPY)
    await seal_namespace(empty, TOPICS, shape, shape.rules)
    with pytest.raises(TopicMismatch, match=r"partition 0 of .* is empty, though the log is a copy"):
        await open_namespace(empty, TOPICS)
