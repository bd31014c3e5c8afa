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
from penstock.schemas.events import Failed, JobError, Returned, Snoozed, Succeeded
from penstock.schemas.limits import MAX_PARTIAL_ERRORS
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
from penstock.workers.transport import OutcomeEvent
from penstock.workers.values import Cancel, PartError, Partial, Retry, Snooze
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


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {"a": object()},
        "\ud800",
        Cyclic(),
        nested(MAX_BODY_DEPTH + 1),
    ],
)
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


def said(value: Any, rules: int = 2) -> OutcomeEvent | None:
    return event_of(resolve(None, "", value, None), delivery(rules=rules), 5, 9)


def test_what_a_handler_says_of_its_attempt() -> None:
    retried = said(Retry(7, "not yet", details={"a": 1}))
    assert isinstance(retried, Failed)
    assert (retried.retry_after_ms, retried.error.code, retried.error.message) == (7, "retry", "not yet")
    assert bytes(retried.error.details) == b'{"a":1}'
    assert said(Retry()) == Failed(
        id="0.1.1.f", job="job-0.1.1", actor="worker:w", at=9, lease="0.1.1", run_ms=5,
        error=JobError("retry", ""), retry_after_ms=None,
    )  # fmt: skip
    put_off = said(Snooze(60_000, "the feed is not ready"))
    assert isinstance(put_off, Snoozed)
    assert (put_off.id, put_off.delay_ms, put_off.reason) == ("0.1.1.z", 60_000, "the feed is not ready")
    given_up = said(Cancel("x" * 300))
    assert isinstance(given_up, Returned)
    assert (given_up.cancel, given_up.reason) == (True, "x" * 256)
    part = said(Partial({"done": 2}, [PartError("gone", "row 3", {"row": 3}), PartError("odd")]))
    assert isinstance(part, Succeeded)
    assert bytes(part.result) == b'{"done":2}'
    assert [(error.code, error.message, error.retryable) for error in part.errors] == [
        ("gone", "row 3", False),
        ("odd", "", False),
    ]
    for event in (retried, put_off, given_up, part):
        assert decode_line(encode_line(event)) == event


def test_what_it_says_is_kept_within_the_limits() -> None:
    assert said(Snooze(-5)).delay_ms == 0  # type: ignore[union-attr]  # it is a Snoozed
    far = said(Snooze(10**15))
    assert isinstance(far, Snoozed)
    assert decode_line(encode_line(far)) == far
    assert said(Partial(1)) == said(1)
    assert isinstance(said(Partial(object(), [PartError("x")])), Failed)
    large = [PartError("c", "\x01" * 2_000, "d" * 16_000) for _ in range(500)]
    part = said(Partial("r" * 200_000, large))
    assert isinstance(part, Succeeded)
    assert 1 <= len(part.errors) <= MAX_PARTIAL_ERRORS
    assert decode_line(encode_line(part)) == part


def test_on_a_log_of_older_rules_the_nearest_is_said() -> None:
    put_off, given_up = said(Snooze(50, "later"), rules=1), said(Cancel("no use"), rules=1)
    assert isinstance(put_off, Failed)
    assert (put_off.error.code, put_off.error.retryable, put_off.retry_after_ms) == ("snoozed", True, 50)
    assert isinstance(given_up, Failed)
    assert (given_up.error.code, given_up.error.message, given_up.error.retryable) == (
        "cancelled",
        "no use",
        False,
    )
    assert isinstance(said(Partial(1, [PartError("x")]), rules=1), Succeeded)
    back = event_of(GivenBack("shutdown"), delivery(rules=1), 0, 0)
    assert isinstance(back, Returned)
