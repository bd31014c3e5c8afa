"""What people do to topics that should never be done to them, with an administrator's client."""

from __future__ import annotations

import time
from collections.abc import Iterable

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

_WAIT_S = 30


def _admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def ends(bootstrap: str, topic: str) -> dict[int, int]:
    """Where each partition ends."""
    from confluent_kafka import Consumer

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "faults", "log_level": 0})
    try:
        count = len(_admin(bootstrap).list_topics(topic, timeout=_WAIT_S).topics[topic].partitions)
        return {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_WAIT_S)[1]
            for number in range(count)
        }
    finally:
        consumer.close()


def trim(bootstrap: str, topic: str, before: dict[int, int]) -> None:
    """Delete the records of each partition below an offset."""
    admin = _admin(bootstrap)  # kept: what it was asked ends with it
    wanted = [TopicPartition(topic, number, offset) for number, offset in before.items()]
    for done in admin.delete_records(wanted).values():
        done.result(timeout=_WAIT_S)


def recreate(bootstrap: str, topic: str) -> None:
    """Delete a topic and make it again, with the same settings and nothing in it."""
    admin = _admin(bootstrap)
    partitions = len(admin.list_topics(topic, timeout=_WAIT_S).topics[topic].partitions)
    resource = ConfigResource(ResourceType.TOPIC, topic)
    found = admin.describe_configs([resource])[resource].result(timeout=_WAIT_S)
    own = {name: entry.value for name, entry in found.items() if entry.source == 1}
    delete(bootstrap, [topic])
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            made = admin.create_topics([NewTopic(topic, partitions, 3, config=own)])
            made[topic].result(timeout=_WAIT_S)
            return
        except KafkaException:
            # Deleting takes a moment after it was answered.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def refill(bootstrap: str, topic: str, lengths: dict[int, int], lines: Iterable[bytes]) -> None:
    """Write records that are not the old ones, until each partition is as long as it was."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    line = next(iter(lines))
    for number, length in lengths.items():
        for _ in range(length):
            producer.produce(topic, line, partition=number)
            producer.poll(0)
    assert producer.flush(_WAIT_S) == 0


def delete(bootstrap: str, topics: Iterable[str]) -> None:
    """Delete topics; those that are not there are no matter."""
    admin = _admin(bootstrap)
    wanted = list(topics)
    for done in admin.delete_topics(wanted).values() if wanted else ():
        try:
            done.result(timeout=_WAIT_S)
        except KafkaException as error:
            if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
                raise


def of_namespace(bootstrap: str, namespace: str) -> list[str]:
    """All topics of a namespace."""
    found = _admin(bootstrap).list_topics(timeout=_WAIT_S).topics
    return [name for name in found if name.startswith(f"{namespace}.")]
