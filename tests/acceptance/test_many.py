"""Many jobs at once, on real Kafka, while every role is killed: one operation on all of them, and many on one key.

`MANY=100000` plays the first at its full size.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.processes import Stack, http, penstock_json
from tests.acceptance.test_kill_roles import leads
from tests.waiting import wait_for

MANY = int(os.environ.get("MANY", "8000"))
BULK = 5_000
LED = ("orchestrator-0", "orchestrator-1")
VICTIMS = ("api", "orchestrator-0", "projection", "worker", "orchestrator-1", "api")

KEYS = 6
WANTS = 240
CALLERS = 8


def ask(method: str, url: str, body: Any = None, **headers: str) -> Any:
    """An answer that is no 503, however long that takes."""

    def answered() -> Any:
        try:
            answer = http(method, url, body, headers=headers)
        except OSError:
            return None
        return None if answer.status == 503 else answer

    return wait_for(f"{method} {url} is answered", answered, 90)


def started(stack: Stack) -> None:
    stack.start()
    wait_for("every partition is led", lambda: sum(leads(stack, name) for name in LED) == 4)


def kill_in_turn(stack: Stack) -> None:
    for victim in VICTIMS:
        stack[victim].kill()
        stack[victim].start().wait_ready()


def proven(stack: Stack) -> None:
    """Everybody leaves in good order, and the log folded anew comes to what they had."""
    for name in ("worker", "api", *LED, "projection"):
        assert stack[name].stop() == 0
    verified = penstock_json("verify", folder=stack.folder, environment=stack["projection"].environment)
    assert verified["ok"], verified


def operated(server: str, action: str, filter: dict[str, Any]) -> dict[str, Any]:
    """The operation, begun."""
    body = {"action": action, "filter": filter}
    answer = ask("POST", f"{server}/api/v1/operations", body, **{"Idempotency-Key": f"{action}-all"})
    assert answer.status == 202, answer.body
    found: dict[str, Any] = answer.json
    return found


def ended(server: str, operation: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        told: dict[str, Any] = ask("GET", f"{server}/api/v1/operations/{operation['id']}").json
        return told if told["finished_at"] else None

    return wait_for(f"the operation {operation['action']} has ended", found, timeout_s)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_operation_on_all_jobs_while_everybody_is_killed(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace)
        started(stack)
        # Nobody handles them, so nothing but what is asked happens to them.
        for first in range(0, MANY, BULK):
            jobs = [
                {"id": f"many-{number}", "type": "unhandled"}
                for number in range(first, min(first + BULK, MANY))
            ]
            assert ask("POST", f"{server}/api/v1/jobs/bulk", jobs).json["accepted"] == len(jobs)
        cancelled = ended(server, operated(server, "cancel", {"type": "unhandled"}), 240)
        assert cancelled["outcomes"] == {"applied": MANY}
        operation = operated(server, "retry", {"type": "unhandled", "state": "cancelled"})
        kill_in_turn(stack)
        told = ended(server, operation, 480)
        assert (told["state"], told["outcomes"]) == ("succeeded", {"applied": MANY})
        rows = ask("GET", f"{server}/api/v1/counts").json["rows"]
        assert {row["state"]: row["jobs"] for row in rows if row["type"] == "unhandled"} == {"ready": MANY}
        for number in random.Random(7).sample(range(MANY), 50):
            items = ask("GET", f"{server}/api/v1/jobs/many-{number}/history").json["items"]
            applied = [item["type"] for item in items if item["outcome"] == "applied"]
            assert applied == ["Enqueued", "CancelRequested", "RetryRequested"], number
        proven(stack)


class Wanting:
    """Wants jobs with few keys, in every way, and keeps what it was told."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.begun: dict[str, int] = {}
        self.statuses: Counter[int] = Counter()

    def want(self, number: int) -> None:
        dice = random.Random(number)
        key = f"key-{dice.randrange(KEYS)}"
        scope = dice.choice(("until_finished", "until_finished", "until_started"))
        unique = {
            "key": key,
            "scope": scope,
            "on_conflict": dice.choice(("reject", "replace", "return_existing")),
        }
        job = {
            "id": f"want-{number}~{key}",
            "type": "nap",
            "payload": {"seconds": 0.05},
            "unique": unique,
            "delay_ms": dice.choice((0, 0, 300)),
        }
        answer = ask("POST", f"{self.server}/api/v1/jobs", job)
        self.statuses[answer.status] += 1
        assert answer.status in (200, 201, 409), answer.body
        if answer.status == 409:
            assert answer.json["code"] == "unique_conflict", answer.body
        elif answer.json["id"] == job["id"]:
            self.begun[job["id"]] = number


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_racing_for_few_keys_while_everybody_is_killed(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace)
        started(stack)
        wanting = Wanting(server)
        with ThreadPoolExecutor(CALLERS) as callers:
            asking = [callers.submit(wanting.want, number) for number in range(WANTS)]
            kill_in_turn(stack)
            for one in asking:
                one.result()
        assert wanting.statuses[201] >= KEYS
        assert wanting.statuses[409] > 0
        wait_for("all have ended", lambda: _open_jobs(server) == 0, 90)
        page = ask("GET", f"{server}/api/v1/jobs?type=nap&limit=1000").json
        assert {job["id"] for job in page["items"]} == wanting.begun.keys()
        assert {job["state"] for job in page["items"]} <= {"succeeded", "cancelled"}
        for number in range(KEYS):
            _check_key(
                server,
                f"key-{number}",
                [job for job in page["items"] if job["id"].endswith(f"~key-{number}")],
            )
        proven(stack)


def _open_jobs(server: str) -> int:
    states = ask("GET", f"{server}/api/v1/counts").json["states"]
    return sum(jobs for state, jobs in states.items() if state not in ("succeeded", "cancelled"))


Line = tuple[tuple[int, ...], str, dict[str, Any]]
"""Where a line of a job's history stands, the job's id, and the line as it is shown."""


def applied_lines(server: str, jobs: Iterable[str]) -> list[Line]:
    """Of the jobs of these ids, job by job."""
    return [
        (tuple(map(int, item["position"].split(":"))), job, item)
        for job in jobs
        for item in ask("GET", f"{server}/api/v1/jobs/{job}/history").json["items"]
        if item["outcome"] == "applied"
    ]


def _check_key(server: str, key: str, jobs: list[dict[str, Any]]) -> None:
    """No two jobs held the key at one time: told from the lines of all of them, in the order of the log."""
    lines = applied_lines(server, [job["id"] for job in jobs])
    holder, scope = "", ""
    # What ends the one comes before what begins with the other, where both are one line.
    lines.sort(key=lambda line: (line[0], line[2]["job"] == line[1]))
    for _, job_id, item in lines:
        if item["type"] == "Enqueued" and item["job"] == job_id:
            assert not holder, json.dumps([key, holder, job_id])
            holder, scope = job_id, item["unique"].get("scope", "until_finished")
        elif job_id == holder and (
            item["type"] in ("Succeeded", "CancelRequested", "Enqueued")
            or (item["type"] == "Leased" and scope == "until_started")
        ):
            holder = ""
