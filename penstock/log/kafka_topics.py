"""Topics on a cluster: created with the settings that the design needs, and checked at every start.

A wrong setting is not noticed when it is made but months later, as lost history: so a mismatch is an error that names
topic, setting, found and wanted, and nothing is altered behind an operator's back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

from penstock.log.kafka_options import KafkaOptions, within
from penstock.log.kafka_producer import BATCH_BYTES
from penstock.log.port import TopicSpec
from penstock.schemas.errors import LogUnavailable, TopicMismatch

_BATCH_ROOM_BYTES = 64 * 1024
"""For the headers of a batch and its records, which count against a topic's largest message."""
_HINT_RETENTION_MS = 10 * 60_000
_TOPIC_EXISTS = 36
_REPLICATION_GOAL = 3


def wanted_settings(spec: TopicSpec, replication: int) -> dict[str, str]:
    """Settings by Kafka's names that a topic must have."""
    retention_ms = spec.retention_ms
    if retention_ms is None and not spec.durable:
        retention_ms = _HINT_RETENTION_MS
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(-1 if retention_ms is None else retention_ms),
        "retention.bytes": "-1",
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": str(2 if replication >= _REPLICATION_GOAL else 1),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(max(spec.max_record_bytes, BATCH_BYTES) + _BATCH_ROOM_BYTES),
    }


async def ensure(
    admin: AIOKafkaAdminClient, options: KafkaOptions, specs: Sequence[TopicSpec], replication: int | None
) -> None:
    """Create what is missing, then check every topic. See :meth:`penstock.log.port.Log.ensure_topics`."""
    brokers = await within(options.request_timeout_ms, "describing the cluster", admin.describe_cluster())
    factor = replication or (_REPLICATION_GOAL if len(brokers["brokers"]) >= _REPLICATION_GOAL else 1)
    existing = await partition_counts(admin, options)
    missing = [spec for spec in specs if spec.name not in existing]
    if missing:
        await _create(admin, options, missing, factor)
    described = await _describe(admin, options, [spec.name for spec in specs])
    settings = await _settings(admin, options, [spec.name for spec in specs])
    for spec in specs:
        _check(
            spec,
            described.get(spec.name),
            settings.get(spec.name, {}),
            factor,
            explicit=replication is not None,
        )


async def partition_counts(admin: AIOKafkaAdminClient, options: KafkaOptions) -> dict[str, int]:
    """All topics of the cluster. Asking for all of them never creates one, as asking by name may."""
    topics = await within(options.request_timeout_ms, "listing topics", admin.describe_topics())
    return {topic["topic"]: len(topic["partitions"]) for topic in topics if not topic["error_code"]}


async def _create(
    admin: AIOKafkaAdminClient, options: KafkaOptions, specs: Sequence[TopicSpec], replication: int
) -> None:
    fresh = [
        NewTopic(spec.name, spec.partitions, replication, topic_configs=wanted_settings(spec, replication))
        for spec in specs
    ]
    creating = admin.create_topics(fresh, timeout_ms=options.request_timeout_ms)
    response: Any = await within(options.request_timeout_ms, "creating topics", creating)
    for name, code, *message in response.topic_errors:
        # Another process may create the same topics at the same moment; what it made is checked below.
        if code not in (0, _TOPIC_EXISTS):
            error = for_code(code)
            text = message[0] if message and message[0] else error.__name__
            raise LogUnavailable(f"Topic {name!r} cannot be created: {text}", topic=name)


async def _describe(
    admin: AIOKafkaAdminClient, options: KafkaOptions, names: Sequence[str]
) -> Mapping[str, Mapping[str, Any]]:
    """Wait until every partition is known to the broker that answers: right after creation it may not be."""

    async def until_known() -> dict[str, Mapping[str, Any]]:
        wanted = set(names)
        while True:
            topics = {topic["topic"]: topic for topic in await admin.describe_topics()}
            ready = {
                name
                for name in wanted & topics.keys()
                if not topics[name]["error_code"]
                and all(p["leader"] >= 0 for p in topics[name]["partitions"])
            }
            if ready == wanted:
                return {name: topics[name] for name in names}
            await asyncio.sleep(0.05)

    return await within(options.request_timeout_ms, "waiting for leaders of the topics", until_known())


async def _settings(
    admin: AIOKafkaAdminClient, options: KafkaOptions, names: Sequence[str]
) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    asking = admin.describe_configs(resources)
    responses: list[Any] = await within(options.request_timeout_ms, "reading topic settings", asking)
    found: dict[str, dict[str, str]] = {}
    for response in responses:
        for code, message, _kind, name, entries in response.resources:
            if code:
                raise LogUnavailable(
                    f"The settings of topic {name!r} cannot be read: {message or for_code(code)}"
                )
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _check(
    spec: TopicSpec,
    described: Mapping[str, Any] | None,
    settings: Mapping[str, str],
    replication: int,
    *,
    explicit: bool,
) -> None:
    partitions: list[Any] = described["partitions"] if described else []
    if len(partitions) != spec.partitions:
        raise _mismatch(spec.name, "partitions", len(partitions), spec.partitions)
    replicas = min(len(partition["replicas"]) for partition in partitions)
    # Unless the number was asked for, more replicas than the goal are welcome.
    if replicas < replication or (explicit and replicas != replication):
        raise _mismatch(spec.name, "replication factor", replicas, replication)
    for name, wanted in wanted_settings(spec, replicas).items():
        found = settings.get(name)
        if name == "max.message.bytes" and found is not None and int(found) >= int(wanted):
            continue
        if found != wanted:
            raise _mismatch(spec.name, name, found, wanted)


def _mismatch(topic: str, setting: str, found: object, wanted: object) -> TopicMismatch:
    return TopicMismatch(
        f"Topic {topic!r}: {setting} is {found}, wanted {wanted}.",
        topic=topic, setting=setting, found=found, wanted=wanted,
    )  # fmt: skip
