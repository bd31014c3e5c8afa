"""The Kafka fixture itself: a fixture that quietly does not do what it says would make many tests pass."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.kafka_broker import Broker, serves

ROOT = Path(__file__).resolve().parent.parent


def _create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    for created in admin.create_topics([NewTopic(topic, 3, 1)]).values():
        created.result(timeout=20)


async def test_a_line_comes_back_from_the_shared_broker(kafka_bootstrap: str, unique_namespace: str) -> None:
    topic = f"{unique_namespace}.lines"
    await asyncio.to_thread(_create_topic, kafka_bootstrap, topic)
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, enable_idempotence=True) as producer:
        await producer.send_and_wait(topic, b"a line", partition=1)
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest"
    ) as consumer:
        record = await asyncio.wait_for(consumer.getone(), 30)
    assert (record.partition, record.offset, record.value) == (1, 0, b"a line")


@pytest.mark.slow
def test_a_broker_comes_back_with_its_data_and_address(private_broker: Broker) -> None:
    address = private_broker.bootstrap
    _create_topic(address, "kept")
    private_broker.suspend()
    assert not serves(address, timeout_s=0.5)
    private_broker.resume()
    assert serves(address, timeout_s=20)
    private_broker.kill()
    assert not serves(address)
    private_broker.start()
    assert private_broker.bootstrap == address
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    assert len(admin.list_topics("kept", timeout=20).topics["kept"].partitions) == 3


@pytest.mark.slow
@pytest.mark.kafka
def test_a_broker_does_not_outlive_a_killed_owner(tmp_path: Path, kafka_bootstrap: str) -> None:
    assert kafka_bootstrap  # skips, or fails, where there is no Kafka
    if not os.environ.get("KAFKA_BOOTSTRAP"):
        pid_file = tmp_path / "java.pid"
        script = (
            "import pathlib, sys, time\nfrom tests.kafka_broker import Broker\nbroker = Broker()\nbroker.start()\n"
            "pathlib.Path(sys.argv[1]).write_text(str(broker.pid))\nprint('up', flush=True)\ntime.sleep(600)\n"
        )
        command = [sys.executable, "-c", script, str(pid_file)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"up\n"
            java = os.pidfd_open(int(pid_file.read_text()))
            owner.kill()
        try:
            ended, _, _ = select.select([java], [], [], 30)
            if not ended:
                signal.pidfd_send_signal(java, signal.SIGKILL)
        finally:
            os.close(java)
        assert ended
