"""Producers of another make write to the jobs topic: confluent-kafka, whose partitioner is not ours; and garbage."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from penstock.schemas.ids import partition_of
from tests.acceptance.processes import Answer, Stack, http, penstock
from tests.waiting import wait_for

PARTITIONS = 4


@pytest.fixture(scope="module")
def running(
    kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, str, str]]:
    """All roles on Kafka, the API's address, and the jobs topic."""
    import uuid

    namespace = f"penstock-{uuid.uuid4().hex[:12]}"
    with Stack(tmp_path_factory.mktemp("foreign")) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, namespace, partitions=PARTITIONS, orchestrators=1)
        stack.start()
        yield stack, server, f"{namespace}.jobs"


def write(
    bootstrap: str, topic: str, values: list[tuple[str | None, bytes]], **options: object
) -> dict[str, int]:
    """Write (key, value) records with confluent-kafka; the partition of each keyed record."""
    landed: dict[str, int] = {}
    failed: list[str] = []

    def delivered(error: object, message: object) -> None:
        if error is not None:
            failed.append(str(error))
        else:
            key = message.key()
            landed[(key or b"").decode()] = message.partition()

    settings = {"bootstrap.servers": bootstrap, "acks": "all", "message.max.bytes": 4_000_000, **options}
    producer = Producer(settings)
    for key, value in values:
        producer.produce(topic, value, key, on_delivery=delivered)
    assert producer.flush(30) == 0
    assert failed == []
    return landed


def job(server: str, job_id: str) -> Answer:
    return http("GET", f"{server}/api/v1/jobs/{job_id}")


def is_done(server: str, job_id: str) -> bool:
    answer = job(server, job_id)
    return answer.status == 200 and answer.json["state"] == "succeeded"


def quarantined(server: str) -> list[str]:
    """Reasons, the newest first."""
    return [item["reason"] for item in http("GET", f"{server}/api/v1/quarantine?limit=1000").json["items"]]


def test_lines_in_the_wrong_partition_get_their_jobs_done(
    kafka_bootstrap: str, running: tuple[Stack, str, str]
) -> None:
    _, server, topic = running
    ids = [f"foreign-{number}" for number in range(24)]
    lines = [
        (
            job_id,
            json.dumps({"type": "Enqueued", "job": job_id, "job_type": "add", "payload": {"a": 1, "b": 2}}),
        )
        for job_id in ids
    ]
    landed = write(kafka_bootstrap, topic, [(key, line.encode()) for key, line in lines])
    astray = [job_id for job_id in ids if landed[job_id] != partition_of(job_id, PARTITIONS)]
    assert astray, "the partitioner agrees with ours: this test shows nothing"
    wait_for("all foreign jobs are done", lambda: all(is_done(server, job_id) for job_id in ids))
    for job_id in ids:
        items = http("GET", f"{server}/api/v1/jobs/{job_id}/history").json["items"]
        assert [item["type"] for item in items] == ["Enqueued", "Leased", "Succeeded"]
        assert items[0]["position"].startswith(f"{partition_of(job_id, PARTITIONS)}:")


def test_one_record_may_hold_many_lines_and_no_key(
    kafka_bootstrap: str, running: tuple[Stack, str, str]
) -> None:
    _, server, topic = running
    ids = [f"keyless-{number}" for number in range(10)]
    lines = [
        {
            "type": "Enqueued",
            "job": job_id,
            "job_type": "add",
            "payload": {"a": 1, "b": 2},
            "priority": "high",
        }
        for job_id in ids
    ]
    value = "\n".join(json.dumps(line) for line in lines) + "\n"
    write(kafka_bootstrap, topic, [(None, value.encode())])
    wait_for("all of them are done", lambda: all(is_done(server, job_id) for job_id in ids))


def test_garbage_is_quarantined_and_what_is_behind_it_goes_on(
    kafka_bootstrap: str, running: tuple[Stack, str, str]
) -> None:
    stack, server, topic = running
    before = len(quarantined(server))
    deep = b'{"type":"Enqueued","job":"deep","job_type":"add","payload":' + b"[" * 500 + b"]" * 500 + b"}"
    garbage = {
        "not_utf8": b'{"type":"Enqueued","job":"bad","job_type":"a\xff"}',
        "not_json": b"hello, is this the right topic?",
        "unknown_type": b'{"type":"Enqueed","job":"typo","job_type":"add"}',
        "invalid": b'{"type":"Enqueued","job":"wrong types","job_type":7}',
        "too_deep": deep,
        "too_large": b'{"type":"Enqueued","job":"large","job_type":"add","payload":"'
        + b"x" * 700_000
        + b'"}',
    }
    behind = json.dumps(
        {"type": "Enqueued", "job": "behind-it", "job_type": "add", "payload": {"a": 1, "b": 1}}
    )
    # One key, so that librdkafka puts all of them into one partition, in this order.
    write(kafka_bootstrap, topic, [("k", line) for line in (*garbage.values(), behind.encode())])
    wait_for("what is behind the garbage is done", lambda: is_done(server, "behind-it"))
    wait_for("all of it is in quarantine", lambda: len(quarantined(server)) == before + len(garbage))
    assert sorted(quarantined(server)[: len(garbage)]) == sorted(garbage)
    listed = penstock("quarantine", "list", "--server", server, folder=stack.folder)
    assert listed.returncode == 0
    assert "hello, is this the right topic?" in listed.stdout


def test_lines_that_only_a_leader_or_a_holder_may_write_change_nothing(
    kafka_bootstrap: str, running: tuple[Stack, str, str]
) -> None:
    _, server, topic = running
    made = http("POST", f"{server}/api/v1/jobs", {"id": "target", "type": "nobody-handles-this"})
    assert made.status == 201
    forged = [
        {"type": "Succeeded", "job": "target", "lease": "0.0.1", "result": "forged"},
        {
            "type": "Leased",
            "job": "target",
            "worker": "me",
            "attempt": 1,
            "lease_ms": 1000,
            "seen": 0,
            "epoch": 0,
        },
        {"type": "Cancelled", "job": "target", "lease": "0.0.1", "epoch": 12345},
        {"type": "Progressed", "job": "target", "lease": "nobody's", "seq": 1, "percent": 99},
    ]
    value = "\n".join(json.dumps(line) for line in forged)
    write(kafka_bootstrap, topic, [("target", value.encode())])
    behind = {"type": "Enqueued", "job": "behind-the-forged", "job_type": "add", "payload": {"a": 1, "b": 1}}
    write(kafka_bootstrap, topic, [("target", json.dumps(behind).encode())])
    wait_for("what is behind them is done", lambda: is_done(server, "behind-the-forged"))
    assert job(server, "target").json["state"] == "ready"
    assert job(server, "target").json["progress"] is None
