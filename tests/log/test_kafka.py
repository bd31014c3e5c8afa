"""What only a cluster does: settings that differ, brokers that go away, clients that spoil."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import OutOfOrderSequenceNumber

from penstock.log.kafka import KafkaLog
from penstock.log.kafka_topics import wanted_settings
from penstock.log.namespace import open_namespace
from penstock.log.port import TopicSpec
from penstock.schemas.errors import (
    AppendRefused,
    AppendUnknown,
    LogUnavailable,
    RecordTooLarge,
    TopicMismatch,
)
from penstock.schemas.topics import Topics
from tests.kafka_broker import Broker
from tests.log.reading import read, take
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.kafka


@contextlib.asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def settings_of(bootstrap: str, topic: str) -> dict[str, str]:
    async with admin_of(bootstrap) as admin:
        responses: list[Any] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in responses[0].resources[0][4]}


async def test_topics_are_made_as_they_must_be(kafka_bootstrap: str, unique_namespace: str) -> None:
    jobs, signals = f"{unique_namespace}.jobs", f"{unique_namespace}.signals"
    specs = [TopicSpec(jobs, 3), TopicSpec(signals, 2, durable=False, retention_ms=300_000)]
    async with KafkaLog(kafka_bootstrap) as one, KafkaLog(kafka_bootstrap) as two:
        assert one.cluster_id == two.cluster_id != ""
        await asyncio.gather(one.ensure_topics(specs), two.ensure_topics(specs))
    found = await settings_of(kafka_bootstrap, jobs)
    assert found["cleanup.policy"] == "delete"
    assert found["retention.ms"] == "-1"
    assert found["retention.bytes"] == "-1"
    assert found["message.timestamp.type"] == "LogAppendTime"
    assert found["unclean.leader.election.enable"] == "false"
    assert found["min.insync.replicas"] == "1"
    assert int(found["max.message.bytes"]) >= 1_048_576
    assert (await settings_of(kafka_bootstrap, signals))["retention.ms"] == "300000"


def test_three_replicas_want_two_in_sync_and_hints_minutes() -> None:
    assert wanted_settings(TopicSpec("jobs", 1), 3)["min.insync.replicas"] == "2"
    assert wanted_settings(TopicSpec("signals", 1, durable=False), 1)["retention.ms"] == "600000"


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("cleanup.policy", "compact", "delete"),
        ("message.timestamp.type", "CreateTime", "LogAppendTime"),
        ("retention.ms", "604800000", "-1"),
        ("retention.bytes", "1000000", "-1"),
        ("unclean.leader.election.enable", "true", "false"),
        ("max.message.bytes", "1000", "1114112"),
    ],
)
async def test_a_setting_that_differs_is_named(
    kafka_bootstrap: str, unique_namespace: str, setting: str, value: str, wanted: str
) -> None:
    spec = TopicSpec(f"{unique_namespace}.jobs", 2)
    settings = wanted_settings(spec, 1) | {setting: value}
    async with admin_of(kafka_bootstrap) as admin:
        await admin.create_topics([NewTopic(spec.name, 2, 1, topic_configs=settings)])
    async with KafkaLog(kafka_bootstrap) as log:
        with pytest.raises(TopicMismatch) as caught:
            await log.ensure_topics([spec])
    assert caught.value.details == {
        "topic": spec.name, "setting": setting, "found": value, "wanted": wanted,
    }  # fmt: skip
    assert all(part in caught.value.message for part in (spec.name, setting, value, wanted))


async def test_too_few_replicas_are_named(kafka_bootstrap: str, unique_namespace: str) -> None:
    spec = TopicSpec(f"{unique_namespace}.jobs", 2)
    async with KafkaLog(kafka_bootstrap) as log:
        await log.ensure_topics([spec])
    async with KafkaLog(kafka_bootstrap, replication=2) as log:
        with pytest.raises(TopicMismatch, match="replication factor is 1, wanted 2"):
            await log.ensure_topics([spec])
        with pytest.raises(LogUnavailable, match="cannot be created"):
            await log.ensure_topics([TopicSpec(f"{unique_namespace}.more", 1)])


async def test_a_foreign_record_s_time_is_not_believed(kafka_bootstrap: str, unique_namespace: str) -> None:
    name = f"{unique_namespace}.foreign"
    async with admin_of(kafka_bootstrap) as admin:
        await admin.create_topics([NewTopic(name, 1, 1)])
    async with KafkaLog(kafka_bootstrap) as log:
        assert (await log.append(name, 0, b"x")).offset == -1
        (record,) = await read(log, {(name, 0): 0})
        assert not record.append_time


async def test_a_broker_s_refusal_of_a_large_record(kafka_bootstrap: str, unique_namespace: str) -> None:
    name = f"{unique_namespace}.narrow"
    async with admin_of(kafka_bootstrap) as admin:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": "1000"})])
    async with KafkaLog(kafka_bootstrap) as log:
        with pytest.raises(RecordTooLarge):
            await log.append(name, 0, b"x" * 5_000)
        await log.append(name, 0, b"small")


async def test_an_empty_topic_s_name_is_never_made_by_asking(
    kafka_bootstrap: str, unique_namespace: str
) -> None:
    async with KafkaLog(kafka_bootstrap) as log:
        with pytest.raises(TopicMismatch):
            await log.bounds(f"{unique_namespace}.none", 0)
        async with admin_of(kafka_bootstrap) as admin:
            assert f"{unique_namespace}.none" not in await admin.list_topics()


async def test_a_spoiled_producer_is_replaced(
    kafka_bootstrap: str, unique_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{unique_namespace}.jobs"
    made: list[object] = []
    sound = AIOKafkaProducer.send_and_wait

    async def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        if len(made) == 2:
            raise OutOfOrderSequenceNumber
        return await sound(self, *args, **kwargs)

    monkeypatch.setattr(AIOKafkaProducer, "send_and_wait", spoiled)
    async with KafkaLog(kafka_bootstrap) as log:
        await log.ensure_topics([TopicSpec(name, 1)])
        await log.append(name, 0, b"one")
        with pytest.raises(AppendUnknown):
            await log.append(name, 0, b"two")
        await log.append(name, 0, b"three")
        assert made[0] is made[1] is not made[2]
        assert [record.value for record in await read(log, {(name, 0): 0})] == [b"one", b"three"]


async def test_nobody_there_is_an_error_in_bounded_time() -> None:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LogUnavailable):
            await KafkaLog("127.0.0.1:1", request_timeout_ms=500).__aenter__()


@pytest.mark.slow
async def test_a_suspended_broker_makes_unknown_appends_and_nothing_hangs(private_broker: Broker) -> None:
    limits = {"append_timeout_ms": 700, "request_timeout_ms": 1_500, "silence_ms": 1_000}
    async with asyncio.timeout(90):
        async with KafkaLog(private_broker.bootstrap, **limits) as log:
            await log.ensure_topics([TopicSpec("jobs", 2)])
            await log.append("jobs", 0, b"before")
            async with log.tail({("jobs", 0): 0}) as tail:
                assert len(await take(tail, 1)) == 1
                private_broker.suspend()
                try:
                    with pytest.raises(AppendUnknown):
                        await log.append("jobs", 0, b"during")
                    # The next one cannot even be sent, which is known.
                    with pytest.raises((AppendRefused, AppendUnknown)):
                        await log.append("jobs", 0, b"still")
                    with pytest.raises(LogUnavailable):
                        await log.bounds("jobs", 0)
                    with pytest.raises(LogUnavailable, match="answered"):
                        await take(tail, 1)
                finally:
                    private_broker.resume()
                appended = await until_appended(log, b"after")
                records = await read(log, {("jobs", 0): 0})
                values = [record.value for record in records]
                assert values[0] == b"before"
                assert values.count(b"after") >= 1
                assert set(values) <= {b"before", b"during", b"still", b"after"}
                assert appended >= 1
                # The same tail goes on as soon as it is answered again.
                seen: list[bytes] = []
                while b"after" not in seen:
                    with contextlib.suppress(LogUnavailable):
                        seen += [record.value for record in await tail.poll(300)]


@pytest.mark.slow
async def test_a_broker_that_dies_and_returns(private_broker: Broker) -> None:
    limits = {"append_timeout_ms": 1_000, "request_timeout_ms": 1_500, "silence_ms": 1_000}
    async with asyncio.timeout(100):
        async with KafkaLog(private_broker.bootstrap, **limits) as log:
            await log.ensure_topics([TopicSpec("jobs", 1)])
            await log.append("jobs", 0, b"before")
            private_broker.kill()
            with pytest.raises((AppendUnknown, AppendRefused)):
                await log.append("jobs", 0, b"during")
            await asyncio.to_thread(private_broker.start)
            await until_appended(log, b"after")
            values = [record.value for record in await read(log, {("jobs", 0): 0})]
            assert values[0] == b"before"
            assert b"after" in values
            private_broker.suspend()
            # Leaving must not hang either.
        private_broker.resume()


async def until_appended(log: KafkaLog, value: bytes) -> int:
    while True:
        try:
            return (await log.append("jobs", 0, value)).offset
        except (AppendRefused, AppendUnknown):
            await asyncio.sleep(0.05)


async def test_a_jobs_topic_that_was_deleted_is_not_made_anew(
    kafka_bootstrap: str, unique_namespace: str
) -> None:
    topics = Topics(unique_namespace, partitions=2, work_partitions=2, worker_partitions=1)
    async with KafkaLog(kafka_bootstrap) as log:
        await open_namespace(log, topics)
    async with admin_of(kafka_bootstrap) as admin:
        await admin.delete_topics([topics.jobs])
    async with KafkaLog(kafka_bootstrap) as log:
        for _ in range(100):
            if topics.jobs not in await log.topic_names():
                break
            await asyncio.sleep(0.1)
        with pytest.raises(TopicMismatch, match="was there and is gone"):
            await open_namespace(log, topics)
        assert topics.jobs not in await log.topic_names()
