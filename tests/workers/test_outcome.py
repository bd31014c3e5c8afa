"""How attempts end, as lines of the log."""

from __future__ import annotations

import datetime
import decimal
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.events import Failed, JobError, Returned, Succeeded
from penstock.workers.errors import HandlerError, NonRetryable, RetryLater
from penstock.workers.outcome import (
    MAX_BODY_DEPTH,
    Done,
    Dropped,
    Errored,
    GivenBack,
    event_of,
    failed,
    field_errors,
    job_error,
    resolve,
    returned_value,
    stopped,
)
from tests.workers.fakes import delivery


class Model(BaseModel):
    when: datetime.date


@dataclass
class Data:
    a: int
    model: Model


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        (0, 0),
        ("text", "text"),
        (Model(when=datetime.date(2026, 1, 2)), {"when": "2026-01-02"}),
        (Data(1, Model(when=datetime.date(2026, 1, 2))), {"a": 1, "model": {"when": "2026-01-02"}}),
        ({1: {2}}, {"1": [2]}),
        (decimal.Decimal("1.5"), "1.5"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (float("nan"), None),
        (msgspec.Raw(b'{"a":\n1}'), {"a": 1}),
        (nested(MAX_BODY_DEPTH), nested(MAX_BODY_DEPTH)),
    ],
)
def test_results_that_json_can_say(value: object, result: object) -> None:
    outcome = returned_value(value)
    assert isinstance(outcome, Done)
    assert b"\n" not in outcome.result
    assert msgspec.json.decode(outcome.result) == result


class Cyclic:
    def model_dump(self, mode: str) -> Any:
        return {"again": self}


@pytest.mark.parametrize("value", [object(), {"a": object()}, "\ud800", Cyclic(), nested(MAX_BODY_DEPTH + 1)])
def test_results_that_it_cannot(value: object) -> None:
    outcome = returned_value(value)
    assert isinstance(outcome, Errored)
    assert (outcome.error.code, outcome.error.retryable) == ("invalid_result", False)


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    ("stop", "value", "error", "outcome"),
    [
        (None, 1, None, Done(b"1")),
        ("cancelled", 1, None, Done(b"1")),
        ("shutdown", 1, None, Done(b"1")),
        ("lost", 1, None, Dropped("why")),
        ("timeout", 1, None, Errored(JobError("timeout", "why"))),
        ("cancelled", None, Odd(), GivenBack("cancelled")),
        ("shutdown", None, Odd(), GivenBack("shutdown")),
        ("lost", None, Odd(), Dropped("why")),
        ("timeout", None, Odd(), Errored(JobError("timeout", "why"))),
    ],
)
def test_what_an_end_means_after_a_stop(stop: Any, value: object, error: Any, outcome: object) -> None:
    assert resolve(stop, "why", value, error) == outcome


@pytest.mark.parametrize(
    ("stop", "outcome"),
    [("cancelled", GivenBack("cancelled")), ("shutdown", GivenBack("shutdown")), ("lost", Dropped("why"))],
)
def test_what_is_said_for_a_handler_that_does_not_stop(stop: Any, outcome: object) -> None:
    assert stopped(stop, "why") == outcome


@pytest.mark.parametrize(
    ("outcome", "kind", "event_id"),
    [
        (Done(b"7"), Succeeded, "0.1.1.s"),
        (Errored(JobError("x", "m"), 5), Failed, "0.1.1.f"),
        (GivenBack("surplus"), Returned, "0.1.1.r"),
    ],
)
def test_lines_carry_the_lease_and_an_id_that_follows_from_it(
    outcome: Any, kind: type[Any], event_id: str
) -> None:
    item = delivery("0.1.1", tenant="acme", trace="t")
    event = event_of(outcome, item, 12, 99)
    assert isinstance(event, kind)
    assert (event.id, event.lease, event.job, event.tenant) == (event_id, "0.1.1", item.job, "acme")
    assert (event.trace, event.at, event.actor) == ("t", 99, "worker:w")
    assert decode_line(encode_line(event)) == event


def test_a_dropped_outcome_is_no_line() -> None:
    assert event_of(Dropped("ended"), delivery(), 1, 1) is None


def test_errors_keep_within_the_limits_of_the_log() -> None:
    error = job_error("c" * 1_000, "m" * 10_000 + "\ud800", {"big": "x" * 100_000}, retryable=True)
    event = event_of(Errored(error), delivery(), 1, 1)
    assert event is not None
    assert decode_line(encode_line(event)) == event
    assert b"shortened" in bytes(error.details)


def test_details_that_json_cannot_say_are_shown_as_text() -> None:
    assert b"unprintable" in bytes(job_error("c", "m", {"o": object()}, retryable=True).details)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_error_tells_where_it_came_from_and_its_cause() -> None:
    details = msgspec.json.decode(failed(raised(Odd("o"), KeyError("k"))).error.details)
    assert details["traceback"][0] == "caused by KeyError: 'k'"
    assert "in raised" in details["traceback"][-1]


@pytest.mark.parametrize(
    ("error", "code", "retryable", "after_ms"),
    [
        (Odd("m"), "Odd", True, None),
        (NonRetryable("m"), "NonRetryable", False, None),
        (HandlerError("m", code="mine"), "mine", True, None),
        (RetryLater(-5), "RetryLater", True, 0),
    ],
)
def test_codes_of_failures(error: Exception, code: str, retryable: bool, after_ms: int | None) -> None:
    outcome = failed(error)
    assert (outcome.error.code, outcome.error.retryable, outcome.retry_after_ms) == (
        code,
        retryable,
        after_ms,
    )


def test_many_wrong_fields_are_summed_up() -> None:
    outcome = field_errors([(f"f{number}", "bad") for number in range(7)])
    assert outcome.error.message == "f0: bad; f1: bad; f2: bad; f3: bad; f4: bad; and 2 more"
