"""``penstock jobs search | operations | events`` and unique keys, against a running service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Result, Run

LATER = ("--delay-ms", "600000")


def put_in(ask: Run, *options: str) -> dict[str, Any]:
    found = ask("enqueue", "greet", '{"name": "Ada"}', *LATER, *options, "--output", "json")
    assert found.code == 0, found.err
    job: dict[str, Any] = found.json
    return job


def ids(found: Result) -> list[str]:
    assert found.code == 0, found.err
    return [job["id"] for job in found.json["items"]]


def test_search(ask: Run) -> None:
    put_in(ask, "--id", "s-1", "--tag", "red", "--queue", "search")
    put_in(ask, "--id", "s-2", "--tag", "red", "--tag", "big", "--queue", "search")
    put_in(ask, "--id", "s-3", "--queue", "search2")

    def searched(*options: str) -> list[str]:
        return ids(ask("jobs", "search", *options, "--output", "json"))

    assert searched("--tag", "red") == ["s-2", "s-1"]
    assert searched("--tag", "red", "--tag", "big") == ["s-2"]
    assert searched("--queue", "search", "--queue", "search2", "--sort", "created_at") == [
        "s-1",
        "s-2",
        "s-3",
    ]
    assert searched("--filter", '{"id_prefix": "s-"}', "--text", "RED", "--limit", "1") == ["s-2"]
    table = ask("jobs", "search", "--tag", "red", "--limit", "1")
    assert "s-2" in table.out
    assert "more with --cursor" in table.out
    cursor = table.out.split("--cursor ")[1].split()[0]
    assert "s-1" in ask("jobs", "search", "--tag", "red", "--limit", "1", "--cursor", cursor).out


def test_lists_and_counts_as_they_were(ask: Run) -> None:
    position = put_in(ask, "--id", "w-1", "--queue", "was")["position"]
    assert ask("jobs", "delete", "w-1").code == 0
    assert ids(ask("jobs", "list", "--queue", "was", "--output", "json")) == []
    for command in ("list", "search"):
        assert ids(ask("jobs", command, "--queue", "was", "--at", position, "--output", "json")) == ["w-1"]
    rows = ask("counts", "--at", position, "--output", "json").json["rows"]
    assert [row["jobs"] for row in rows if row["queue"] == "was"] == [1]
    wrong = ask("counts", "--at", "yesterday")
    assert wrong.code != 0
    assert "at: a time with its zone" in wrong.err


def test_operations(ask: Run) -> None:
    for number in range(3):
        put_in(ask, "--id", f"o-{number}", "--queue", "many")
    counted = ask("operations", "start", "hold", "--queue", "many", "--dry-run", "--wait", "--output", "json")
    assert counted.code == 0, counted.err
    assert counted.json["outcomes"] == {"applied": 3}
    held = ask(
        "operations", "start", "hold", "--queue", "many", "--reason", "why", "--wait", "--output", "json"
    )
    assert (held.json["state"], held.json["outcomes"]) == ("succeeded", {"applied": 3})
    moved = ask("operations", "start", "move", "o-0", "o-1", "nobody", "--to-queue", "other", "--wait")
    assert moved.code == 0, moved.err
    assert "applied=2 unknown_job=1" in moved.out
    operation = held.json["id"]
    items = ask("operations", "items", operation, "--outcome", "applied")
    assert [f"o-{number}" in items.out for number in range(3)] == [True] * 3
    assert operation in ask("operations", "list").out
    assert "hold" in ask("operations", "get", operation).out
    refused = ask("operations", "cancel", operation)
    assert (refused.code, "succeeded" in refused.err) == (5, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("operations", "start", "hold"), 2, "which jobs"),
        (("operations", "start", "hold", "a", "--queue", "q"), 2, "either"),
        (("operations", "start", "explode", "--all"), 2, "action"),
        (("operations", "start", "priority", "--all", "--to-priority", "now"), 2, "priority"),
        (("operations", "get", "nothing"), 4, "nothing"),
        (("jobs", "search", "--state", "gone"), 2, "state"),
        (("jobs", "search", "--filter", "{"), 2, "--filter"),
        (("jobs", "search", "--created-after", "yesterday"), 2, "created_after"),
        (("events", "--types", "Exploded"), 2, "Exploded"),
        (("events", "--after", "0:99999:0"), 7, "the log ends before"),
        (("enqueue", "greet", "--unique-scope", "period"), 2, "--unique-key"),
        (("enqueue", "greet", "--unique-key", "k", "--unique-scope", "period"), 2, "period_ms"),
        (("enqueue", "greet", "--idempotency-key", "a b"), 2, "idempotency_key"),
        (("enqueue", "--bulk", "--idempotency-key", "a"), 2, "--bulk"),
    ],
)
def test_bad_input_is_a_message_and_a_code(
    ask: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found = ask(*arguments)
    assert (found.code, said in found.err) == (code, True), found.err
    assert "Traceback" not in found.err


def test_keys(ask: Run) -> None:
    first = put_in(ask, "--unique-key", "cli")
    refused = ask("enqueue", "greet", "--unique-key", "cli")
    assert refused.code == 5
    assert first["id"] in refused.err
    returned = ask(
        "enqueue", "greet", "--unique-key", "cli", "--on-conflict", "return_existing", "--output", "json"
    )
    assert returned.json["id"] == first["id"]
    second = put_in(ask, "--unique-key", "cli", "--on-conflict", "replace", "--tag", "second")
    assert ask("jobs", "get", first["id"], "--output", "json").json["state"] == "cancelled"
    assert ids(ask("jobs", "search", "--unique-key", "cli", "--output", "json")) == [
        second["id"],
        first["id"],
    ]
    once = put_in(ask, "--idempotency-key", "once")
    assert put_in(ask, "--idempotency-key", "once")["id"] == once["id"]
    other = ask("enqueue", "greet", "--idempotency-key", "once")
    assert (other.code, "another request" in other.err) == (5, True)


def test_batches_and_workflows(ask: Run) -> None:
    token = put_in(ask, "--id", "b-1", "--batch", "import", "--workflow", "nightly")["position"]
    lines = b'{"type": "greet", "id": "b-2", "batch": "import", "delay_ms": 600000}\n{"type": "greet", "batch": "-"}\n'
    told = ask("enqueue", "--bulk", "--output", "json", stdin=lines)
    assert (told.json["accepted"], told.json["rejected"]) == (1, 1)
    assert ask("enqueue", "greet", "--batch", "two words").code == 2
    assert ids(ask("jobs", "search", "--batch", "import", "--sort", "created_at", "--output", "json")) == [
        "b-1",
        "b-2",
    ]
    assert ids(ask("jobs", "search", "--workflow", "nightly", "--output", "json")) == ["b-1"]
    assert ask("counts", "--batch", "import", "--output", "json").json["states"] == {"scheduled": 2}
    assert ask("counts", "--workflow", "nightly", "--output", "json").json["total"] == 1
    assert ids(ask("jobs", "list", "--batch", "import", "--output", "json")) == ["b-2", "b-1"]
    assert ids(ask("jobs", "list", "--workflow", "nightly", "--output", "json")) == ["b-1"]
    assert "1 of 2; more with" in ask("jobs", "list", "--batch", "import", "--limit", "1").out
    held = ask("operations", "start", "hold", "--batch", "import", "--wait", "--output", "json")
    assert held.json["outcomes"] == {"applied": 2}
    heard = ask("events", "--after", token, "--workflow", "nightly", "--count", "1")
    assert "b-1 Held" in heard.out


def test_events(ask: Run) -> None:
    token = put_in(ask, "--id", "e-1", "--tag", "heard")["position"]
    for verb in ("hold", "unhold", "cancel"):
        assert ask("jobs", verb, "e-1").code == 0
    heard = ask("events", "--after", token, "--job", "e-1", "--count", "3", "--output", "json")
    assert heard.code == 0, heard.err
    events = [json.loads(line) for line in heard.out.splitlines()]
    assert [event["type"] for event in events] == ["Held", "Unheld", "CancelRequested"]
    again = ask("events", "--after", events[0]["token"], "--job", "e-1", "--count", "1")
    assert "e-1 Unheld by api" in again.out
    put_in(ask, "--id", "e-2", "--tag", "heard")
    assert (
        "e-2 Enqueued" in ask("events", "--after", events[2]["token"], "--tag", "heard", "--count", "1").out
    )
