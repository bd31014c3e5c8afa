"""The broker goes away: for a moment, and for so long that roles end, to be started again by their supervisor."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.acceptance.processes import Stack, http
from tests.acceptance.test_kill_roles import run_probe
from tests.kafka_broker import Broker
from tests.waiting import wait_for

LOG_UNREACHABLE = 6
"""Exit code of a process that could not go on without the log."""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_work_goes_on_after_the_broker_was_gone(
    private_broker: Broker, unique_namespace: str, tmp_path: Path
) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(private_broker.bootstrap, unique_namespace)
        stack.start()
        run_probe(server, "before")
        private_broker.suspend()
        # How long the broker is away is what is tested here, and no wait for anything.
        time.sleep(3)
        private_broker.resume()
        run_probe(server, "after-a-moment")
        assert [name for name, role in stack.roles.items() if not role.running] == []
        private_broker.kill()
        lost = http(
            "POST", f"{server}/api/v1/jobs", {"id": "meanwhile", "type": "add", "payload": {"a": 1, "b": 2}}
        )
        assert (lost.status, lost.json["job_id"]) == (503, "meanwhile")
        assert int(lost.headers["retry-after"]) > 0
        # Handlers may still be running in a worker: it waits. The others are of no use without the log.
        others = [role for name, role in stack.roles.items() if name != "worker"]
        wait_for("they end by themselves", lambda: not any(role.running for role in others), 60)
        assert {role.stop() for role in others} == {LOG_UNREACHABLE}
        assert stack["worker"].running
        private_broker.start()
        for role in others:
            role.start()
        for role in others:
            role.wait_ready()
        # The same wish again, under the same id: done once, whether or not the first one was written.
        run_probe(server, "meanwhile-2")
        again = http(
            "POST", f"{server}/api/v1/jobs", {"id": "meanwhile", "type": "add", "payload": {"a": 1, "b": 2}}
        )
        assert again.status in (200, 201)
        wait_for(
            "it is done", lambda: http("GET", f"{server}/api/v1/jobs/meanwhile").json["state"] == "succeeded"
        )
