"""The AsyncAPI document: whole, with references that lead somewhere, and true of what stands on the log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import pytest

from penstock.api.asyncapi import document
from penstock.schemas import messages
from penstock.schemas.codec import split
from penstock.schemas.events import AnyEvent
from penstock.schemas.messages import encode_messages
from penstock.schemas.topics import Topics
from tests.api.harness import Bench
from tests.schemas.test_messages import HEARTBEAT

EVENTS_PAGE = Path(__file__).parent.parent.parent / "docs" / "events.md"
DOCUMENT = json.loads(json.dumps(document(Topics(namespace="mine"), version="1.2.3")))


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in references(value)]
    return [found for value in part for found in references(value)] if isinstance(part, list) else []


def at(reference: str) -> Any:
    found: Any = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def is_valid(line: dict[str, Any]) -> None:
    """Raises jsonschema_rs.ValidationError."""
    schema = {"$ref": f"#/components/schemas/{line['type']}", "components": DOCUMENT["components"]}
    jsonschema_rs.validate(schema, line)


def test_every_event_and_message_is_in_it_and_every_reference_leads_somewhere() -> None:
    written = {kind.__name__ for kind in get_args(AnyEvent)} - {"Configured"}
    assert DOCUMENT["channels"]["jobs"]["messages"].keys() == written
    assert DOCUMENT["channels"]["jobs"]["address"] == "mine.jobs"
    assert DOCUMENT["channels"]["signals"]["messages"].keys() == {
        kind.__name__ for kind in get_args(messages.Signal)
    }
    assert {name for name in DOCUMENT["channels"] if name.startswith("work.")} == {
        f"work.{priority}" for priority in ("critical", "high", "normal", "low")
    }
    assert all(at(reference) for reference in references(DOCUMENT))
    assert all(message["summary"] for message in DOCUMENT["components"]["messages"].values())


def test_no_pattern_is_one_of_python_alone() -> None:
    patterns = re.findall(r'"pattern": "(.*?)"', json.dumps(DOCUMENT))
    assert patterns
    assert not [pattern for pattern in patterns if r"\\Z" in pattern or "(?P" in pattern]


async def test_what_stands_on_the_log_is_as_it_says(whole: Bench) -> None:
    await whole.enqueue(
        payload={"n": [1]}, tags=["a"], unique={"key": "k"}, backoff={"kind": "fixed", "base_ms": 5}
    )
    [leased] = await whole.fetch()
    await whole.report(
        {"type": "Progressed", "job": leased["id"], "lease": leased["lease"], "percent": 5, "checkpoint": 1}
    )
    await whole.report(
        {"type": "Failed", "job": leased["id"], "lease": leased["lease"], "error": {"code": "x"}}
    )
    seen: set[str] = set()
    topics = whole.deps.topics
    for partition in range(topics.partitions):
        for record in whole.log.topics.read(topics.jobs, partition, 0, 10_000_000):
            for line in split(record.value):
                is_valid(json.loads(line))
                seen.add(json.loads(line)["type"])
    assert {"Enqueued", "Leased", "Progressed", "Failed", "LeaderAnnounced"} <= seen


def test_the_examples_of_the_events_page_are_as_it_says() -> None:
    examples = re.findall(r"^```json\n(.*?)\n```$", EVENTS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        is_valid(json.loads(example))


@pytest.mark.parametrize(
    "message", [HEARTBEAT, messages.Drain(worker="w"), messages.Echo(orchestrator="o", incarnation="i", at=1)]
)
def test_hints_are_as_it_says(message: Any) -> None:
    is_valid(json.loads(encode_messages([message])))


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "Enqueued"},
        {"type": "Enqueued", "job": "a", "job_type": "t", "delay_ms": -1},
        {"type": "Enqueued", "job": "a", "job_type": 5},
    ],
)
def test_what_is_wrong_is_not_as_it_says(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        is_valid(wrong)


async def test_it_is_served_with_the_names_of_the_namespace(api: Bench) -> None:
    found = (await api.http.get("/asyncapi.json")).json()
    assert found["asyncapi"] == "3.0.0"
    assert found["channels"]["jobs"]["address"] == api.deps.topics.jobs
