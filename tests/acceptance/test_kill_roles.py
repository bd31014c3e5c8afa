"""Every role is killed in turn, on real Kafka, while jobs keep coming in.

What must hold: whatever was accepted ends, exactly once; work goes on while and after somebody is gone; and whoever
folds the log anew comes to the same digests as those who were killed.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.ledger import ledger_of
from tests.acceptance.processes import Stack, http, penstock_json
from tests.waiting import wait_for

PAUSE_S = 0.02


class Load:
    """Enqueues one job after the other in a thread, each under its own id until it is accepted."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.accepted: list[str] = []
        self.retries = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            # Every tenth takes a while, so that something is always running when somebody dies.
            kind = {"type": "nap", "payload": {"seconds": 0.5}} if number % 10 == 0 else {}
            job = {"id": f"load-{number}", "type": "add", "payload": {"a": number, "b": 1}, **kind}
            while not self._enqueue(job):
                self.retries += 1
                if self._stopping.is_set():
                    return
                time.sleep(0.1)
            self.accepted.append(job["id"])
            time.sleep(PAUSE_S)

    def _enqueue(self, job: dict[str, object]) -> bool:
        with contextlib.suppress(OSError):
            return http("POST", f"{self._server}/api/v1/jobs", job, timeout_s=10).status in (200, 201)
        return False


def run_probe(server: str, name: str) -> None:
    """A job enqueued now is done."""

    def accepted() -> bool:
        with contextlib.suppress(OSError):
            job = {"id": name, "type": "add", "payload": {"a": 1, "b": 1}, "priority": "critical"}
            return http("POST", f"{server}/api/v1/jobs", job).status in (200, 201)
        return False

    def done() -> bool:
        with contextlib.suppress(OSError):
            answer = http("GET", f"{server}/api/v1/jobs/{name}")
            return answer.status == 200 and answer.json["state"] == "succeeded"
        return False

    wait_for(f"{name} is accepted", accepted)
    wait_for(f"{name} is done", done)


def leads(stack: Stack, name: str) -> int:
    """How many partitions an orchestrator leads."""
    text = http("GET", stack[name].ready_url.replace("/readyz", "/metrics")).body.decode()
    return next(
        int(float(line.split()[-1]))
        for line in text.splitlines()
        if line.startswith("penstock_partitions_led")
    )


def caught_up(server: str) -> list[dict[str, Any]] | None:
    """Status by partition once none is behind."""
    partitions = http("GET", f"{server}/readyz").json["partitions"]
    return None if any(entry["lag"] for entry in partitions) else partitions


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kill_9_of_each_role_in_turn(kafka_bootstrap: str, unique_namespace: str, tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace)
        stack.start()
        wait_for(
            "every partition is led",
            lambda: leads(stack, "orchestrator-0") + leads(stack, "orchestrator-1") == 4,
        )
        with Load(server) as load:
            victims = ["orchestrator-0", "worker", "projection", "api", "orchestrator-1"]
            for number, victim in enumerate(victims):
                before = len(load.accepted)
                wait_for("jobs come in", lambda before=before: len(load.accepted) > before + 20)
                stack[victim].kill()
                if victim.startswith("orchestrator"):
                    # The other one takes over: nobody has to come back for that.
                    run_probe(server, f"probe-without-{number}")
                stack[victim].start().wait_ready()
                run_probe(server, f"probe-{number}")
        probes = [f"probe-without-{number}" for number in (0, 4)] + [f"probe-{number}" for number in range(5)]
        accepted = load.accepted + probes
        wait_for(
            "all jobs have ended",
            lambda: http("GET", f"{server}/api/v1/counts").json["states"] == {"succeeded": len(accepted)},
            60,
        )
        _check_log(stack, kafka_bootstrap, unique_namespace, server, Counter(accepted))


def _check_log(stack: Stack, bootstrap: str, namespace: str, server: str, accepted: Counter[str]) -> None:
    # Whoever writes goes first (one that leaves is succeeded by another, which says so on the log), then is compared.
    for name in ("worker", "orchestrator-0", "orchestrator-1"):
        assert stack[name].stop() == 0, stack[name].tail()
    partitions = wait_for("the read model has all of it", lambda: caught_up(server))
    live = {entry["partition"]: (entry["next_offset"], entry["digest"]) for entry in partitions}
    for name in ("api", "projection"):
        assert stack[name].stop() == 0, stack[name].tail()
    log = {
        "PENSTOCK_LOG": f"kafka://{bootstrap}",
        "PENSTOCK_NAMESPACE": namespace,
        "PENSTOCK_PARTITIONS": "4",
        "PENSTOCK_WORK_PARTITIONS": "8",
    }
    ledger = ledger_of(stack.folder, environment=log)
    assert ledger.begun == accepted
    assert ledger.succeeded == accepted
    assert ledger.ends == {"succeeded": len(accepted)}
    rebuilt = penstock_json(
        "projection", "rebuild", "--into", "rebuilt", folder=stack.folder, environment=log
    )
    found = {entry["partition"]: (entry["next_offset"], entry["digest"]) for entry in rebuilt["partitions"]}
    assert found == live
    for name in ("projection", "orchestrator-0", "orchestrator-1"):
        environment = {**log, "PENSTOCK_DATA": str(stack.folder / name)}
        verified = penstock_json("verify", folder=stack.folder, environment=environment)
        assert verified["ok"], verified
        assert all(partition["compared"] for partition in verified["partitions"]), (
            f"{name}: nothing was compared"
        )
