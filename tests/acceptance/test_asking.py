"""Every way of asking, on real Kafka with every role a process of its own, while some of them are killed."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from penstock import Client
from tests.acceptance.processes import Stack, http
from tests.acceptance.test_kill_roles import leads
from tests.waiting import wait_for

JOBS = 300
LED = ("orchestrator-0", "orchestrator-1")
APP = """
from penstock import Context, task

@task
async def add(a: int, b: int, ctx: Context) -> int:
    ctx.log.info("adding %d", a)
    return a + b

@task
async def echo(payload: str) -> str:
    return payload

@task
async def fails(n: int) -> None:
    raise ValueError(f"number {n}")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_way_of_asking(kafka_bootstrap: str, unique_namespace: str, tmp_path: Path) -> None:
    (tmp_path / "asked.py").write_text(APP)
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace, app=tmp_path / "asked.py")
        for name in ("api", "worker"):
            stack[name].environment["PENSTOCK_CLAIMS"] = str(tmp_path / "claims")
        stack.start()
        wait_for("every partition is led", lambda: sum(leads(stack, name) for name in LED) == 4)
        with Client(server) as client:
            _large_bodies_and_logs(client, tmp_path / "claims")
            _stream_over_deaths(stack, client, server)
            _searches(client)
            _as_it_was(client, server)
        for name in ("worker", "api", *LED, "projection"):
            assert stack[name].stop() == 0, stack[name].tail()


def _large_bodies_and_logs(client: Client, claims: Path) -> None:
    text = "x" * 500_000
    job = client.enqueue("echo", text)
    assert client.result(job["id"], timeout_ms=30_000) == text == client.payload(job["id"])
    # The same text is one object.
    assert len([path for path in claims.rglob("*") if path.is_file()]) == 1
    job = client.enqueue("add", {"a": 1, "b": 2})
    assert client.result(job["id"], timeout_ms=30_000) == 3
    [line] = wait_for("the log is there", lambda: client.log_page(job["id"], 1)["items"])
    assert line["message"] == "adding 1"


def _stream_over_deaths(stack: Stack, client: Client, server: str) -> None:
    """Heard over three lives of the API and two of the projection: no gap, and nothing twice."""
    heard: list[tuple[str, str, str]] = []
    wanted = Counter({"Enqueued": JOBS, "Succeeded": JOBS - JOBS // 10, "Failed": JOBS // 10})

    def hear() -> None:
        with Client(server) as own:
            for event in own.events(types="Enqueued,Succeeded,Failed", queue="heard"):
                heard.append((event["token"], event["type"], event["job"]))

    threading.Thread(target=hear, daemon=True).start()
    # It is heard from the moment that it listens.
    wait_for("it listens", lambda: _heard_one(client, heard))
    for part, victim in enumerate(("api", "projection", "api")):
        numbers = range(part * JOBS // 3, (part + 1) * JOBS // 3)
        client.enqueue_many(map(_heard, numbers))
        stack[victim].kill()
        stack[victim].start().wait_ready()

    def told() -> list[tuple[str, str, str]]:
        """Without what was put in to see whether it listens."""
        return [one for one in heard if one[2].startswith("heard-")]

    wait_for("all was heard", lambda: Counter(kind for _, kind, _ in told()) >= wanted, 90)
    assert Counter(kind for _, kind, _ in told()) == wanted
    assert len(set(told())) == len({(kind, job) for _, kind, job in told()}) == wanted.total()


def _heard(number: int) -> dict[str, Any]:
    """One in ten fails."""
    common = {"queue": "heard", "id": f"heard-{number}"}
    if number % 10 == 0:
        return {"type": "fails", "payload": {"n": number}, "max_attempts": 1, **common}
    return {"type": "add", "payload": {"a": number, "b": 1}, **common}


def _heard_one(client: Client, heard: list[Any]) -> bool:
    client.enqueue("add", {"a": 0, "b": 0}, queue="heard")
    try:
        wait_for("it is heard", lambda: heard, 2)
    except AssertionError:
        return False
    return True


def _searches(client: Client) -> None:
    """Pages that neither skip nor repeat while others are put in; filters that say what the jobs say."""
    seen: list[str] = []
    cursor, extra = "", 0
    while True:
        page = client.search_page(
            {"queue": ["heard"], "id_prefix": "heard-"}, sort="created_at", cursor=cursor, limit=37
        )
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"] or ""
        if not cursor:
            break
        client.enqueue("add", {"a": 1, "b": 1}, queue="heard", id=f"later-{(extra := extra + 1)}")
    assert sorted(seen) == sorted(f"heard-{n}" for n in range(JOBS))
    failed = {f"heard-{n}" for n in range(0, JOBS, 10)}
    for wanted in (
        {"state": ["dead"]}, {"has_errors": True}, {"error_contains": "number "}, {"type": ["fails"]},
        {"text": "ValueError"},
    ):  # fmt: skip
        assert {job["id"] for job in client.search({**wanted, "queue": ["heard"]})} == failed, wanted
    [one] = client.search({"payload_contains": '"n":120}'})
    assert one["id"] == "heard-120"


def _as_it_was(client: Client, server: str) -> None:
    """At each line of its life a job is as that line left it."""
    states = {"Enqueued": "ready", "Leased": "active", "Failed": "dead", "DeadLettered": "dead"}
    items = client.history("heard-0")
    assert [item["type"] for item in items if item["outcome"] == "applied"] == list(states)
    for item in items:
        if item["outcome"] == "applied":
            assert client.get("heard-0", item["position"])["state"] == states[item["type"]]
    first, last = items[0]["position"], items[-1]["position"]
    listed = [
        {job["id"]: job["state"] for job in client.search({"id_prefix": "heard-0"}, at=at)}
        for at in (first, last)
    ]
    assert [states.get("heard-0") for states in listed] == ["ready", "dead"]
    for at in (first, last):
        counted: Counter[str] = Counter(job["state"] for job in client.jobs(at=at))
        assert client.counts(at)["states"] == counted
    assert {job["id"] for job in client.jobs(at="2020-01-01T00:00:00Z")} == set()
    before = http("GET", f"{server}/api/v1/jobs/heard-0?at=2020-01-01T00:00:00Z")
    assert (before.status, json.loads(before.body)["code"]) == (404, "job_not_found")
