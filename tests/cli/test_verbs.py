"""``penstock jobs cancel | retry | ...`` against a running service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Run

LATER = ("--delay-ms", "600000")


def enqueued(ask: Run, job_id: str, *options: str) -> str:
    assert ask("enqueue", "greet", '{"name": "Ada"}', "--id", job_id, *options).code == 0
    return job_id


def changed(ask: Run, *arguments: str, stdin: bytes = b"") -> dict[str, Any]:
    found = ask("jobs", *arguments, "--output", "json", stdin=stdin)
    assert found.code == 0, found.err
    job: dict[str, Any] = found.json
    return job


def test_a_waiting_job_is_changed_in_every_way(ask: Run) -> None:
    job = enqueued(ask, "waits", *LATER)
    assert changed(ask, "priority", "high", job)["priority"] == "high"
    assert changed(ask, "move", job, "--queue", "slow")["queue"] == "slow"
    assert changed(ask, "reschedule", job, "--run-at", "2100-01-01T00:00:00Z")["scheduled_at"][:4] == "2100"
    assert changed(ask, "hold", job, "--reason", "wait for it")["state"] == "held"
    assert changed(ask, "unhold", job)["state"] == "scheduled"
    assert changed(ask, "cancel", job)["state"] == "cancelled"
    assert changed(ask, "retry", job, "--attempts", "2")["max_attempts"] == 2
    assert ask("enqueue", "greet", "--id", "other", "--wait").code in (0, 1)
    history = ask("jobs", "history", job).out
    assert "wait for it" in history
    assert "Edited" in history


def test_a_running_job_is_told_to_stop(ask: Run) -> None:
    assert ask("enqueue", "linger", "--id", "runs").code == 0
    while ask("jobs", "get", "runs", "--output", "json").json["state"] != "active":
        pass
    refused = ask("jobs", "delete", "runs")
    assert (refused.code, "active" in refused.err) == (5, True)
    ask("jobs", "cancel", "runs")
    while (state := ask("jobs", "get", "runs", "--output", "json").json["state"]) == "active":
        pass
    assert state == "cancelled"


def test_delete_and_clone(ask: Run) -> None:
    job = enqueued(ask, "gone", *LATER)
    clone = changed(ask, "clone", job, '{"name": "Grace"}', "--priority", "low", "--id", "clone", *LATER)
    assert (clone["id"], clone["payload"], clone["priority"]) == ("clone", {"name": "Grace"}, "low")
    from_stdin = changed(ask, "clone", job, "-", stdin=b'{"name": "Alan"}')
    assert from_stdin["payload"] == {"name": "Alan"}
    assert changed(ask, "clone", job)["payload"] == {"name": "Ada"}
    of_others = changed(ask, "clone", job, "null", "--batch", "b", "--workflow", "w", *LATER)
    assert (of_others["payload"], of_others["batch"], of_others["workflow"]) == (None, "b", "w")
    assert changed(ask, "delete", job)["state"] == "deleted"
    again = ask("jobs", "get", job)
    assert (again.code, "was deleted" in again.err) == (4, True)


def test_many_at_once_and_what_was_not_done_is_told(ask: Run) -> None:
    jobs = [enqueued(ask, f"many-{number}", *LATER) for number in range(3)]
    ask("jobs", "cancel", jobs[1])
    found = ask("jobs", "cancel", *jobs, "nobody", "--output", "json")
    assert found.code == 5
    told = json.loads(found.out)
    assert [job["id"] for job in told["changed"]] == [jobs[0], jobs[2]]
    assert [(one["id"], one["code"]) for one in told["failed"]] == [
        (jobs[1], "conflict"),
        ("nobody", "job_not_found"),
    ]
    assert "2 of 4 jobs were not changed" in found.err
    assert ask("jobs", "retry", *jobs).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("cancel", "nobody"), 4, "no job 'nobody'"),
        (("cancel",), 2, "JOB..."),
        (("reschedule", "a"), 2, "either run_at or delay_ms"),
        (("reschedule", "a", "--run-at", "soon"), 2, "run_at"),
        (("priority", "urgent", "a"), 2, "allowed are critical, high, normal, low"),
        (("move", "a"), 2, "give a queue or a pool"),
        (("move", "a", "--queue", "no name"), 2, "queue"),
        (("retry", "a", "--attempts", "0"), 2, "attempts"),
        (("clone", "a", "{bad"), 2, "not JSON"),
    ],
)
def test_bad_input(ask: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    found = ask("jobs", *arguments)
    assert found.code == code, found.err
    assert says in found.err
    assert "Traceback" not in found.err


def test_what_a_job_returned(ask: Run) -> None:
    enqueued(ask, "returns")
    found = ask("jobs", "result", "returns", "--wait-timeout-ms", "20000")
    assert (found.code, found.json) == (0, "hello Ada")
    enqueued(ask, "not-yet", *LATER)
    refused = ask("jobs", "result", "not-yet")
    assert (refused.code, "scheduled" in refused.err) == (5, True)
