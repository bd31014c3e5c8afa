"""A request: what is allowed, what its hash covers, and the event it becomes."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pydantic
import pytest

from penstock.client.enqueued import enqueued_event, enqueued_fields, line_of
from penstock.client.enqueued import event_of as event_of_fields
from penstock.client.requests import (
    JobRequest,
    all_shallow,
    check_json,
    decode_request,
    decode_requests,
    fields_of,
    request_fields,
    request_from,
    request_hash,
)
from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.errors import InvalidField, MalformedJson, TooLarge
from penstock.schemas.events import Backoff, Enqueued
from penstock.schemas.limits import MAX_METADATA_BYTES


def event_of(**fields: Any) -> Enqueued:
    request, hashed = request_from(fields)
    return enqueued_event(request, job_id=request.id or "made", hashed=hashed, at_ms=7)


@dataclasses.dataclass
class Size:
    width: int


class Image(pydantic.BaseModel):
    path: str
    size: Size


class TestHash:
    def test_does_not_depend_on_the_order_of_keys_or_on_spaces(self):
        _, one = decode_request(b'{"type":"t","payload":{"a":1,"b":[1,2]}}')
        _, two = decode_request(b'{ "payload": {"b":[1, 2], "a": 1},\n "type":"t" }')
        assert one == two

    @pytest.mark.parametrize("field", ["id", "trace", "at"])
    def test_does_not_cover_what_two_sendings_may_differ_in(self, field: str):
        assert request_hash({"type": "t", field: "x"}) == request_hash({"type": "t"})

    @pytest.mark.parametrize(
        "other",
        [
            {"type": "u"},
            {"type": "t", "payload": None},
            {"type": "t", "payload": 1},
            {"type": "t", "queue": "default"},
            {"type": "t", "tags": []},
        ],
    )
    def test_covers_everything_as_sent_even_defaults(self, other: dict[str, Any]):
        assert request_hash(other) != request_hash({"type": "t"})

    def test_is_this_one_for_ever(self):
        fields = {"type": "resize", "payload": {"ü": [1, 2.5, None, True]}, "queue": "images"}
        assert request_hash(fields) == "6eea5b555e2365785db4044098dd3804"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "type"),
        (b"[1]", "$"),
        (b"null", "$"),
        (b'{"type":5}', "type"),
        (b'{"type":""}', "type"),
        (b'{"type":"a b"}', "type"),
        (b'{"type":"t","foo":1}', "foo"),
        (b'{"type":"t","id":"a b"}', "id"),
        (b'{"type":"t","id":".."}', "id"),
        (b'{"type":"t","priority":"urgent"}', "priority"),
        (b'{"type":"t","backoff":{"kind":"odd"}}', "backoff.kind"),
        (b'{"type":"t","backoff":{"base":1}}', "backoff.base"),
        (b'{"type":"t","backoff":{"jitter":2}}', "backoff.jitter"),
        (b'{"type":"t","tags":["a b"]}', "tags[0]"),
        (b'{"type":"t","delay_ms":-1}', "delay_ms"),
        (b'{"type":"t","delay_ms":1.5}', "delay_ms"),
        (b'{"type":"t","max_attempts":0}', "max_attempts"),
        (b'{"type":"t","run_at":"tomorrow"}', "run_at"),
        (b'{"type":"t","run_at":"2026-01-01T00:00:00"}', "run_at"),
        (b'{"type":"t","metadata":[]}', "metadata"),
    ],
)
def test_a_value_that_is_not_allowed_names_its_field(body: bytes, field: str):
    with pytest.raises(InvalidField) as caught:
        decode_request(body)
    assert caught.value.details["field"] == field
    if field != "$":
        assert field.split(".")[-1] in caught.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"type":"t"} x', b'{"type":"\xff"}', b"[" * 100_000, b'{"type":"t","payload":"\\ud800"}'],
    ids=["empty", "cut", "trailing", "not utf-8", "deep", "surrogate"],
)
def test_what_is_not_json_is_malformed(body: bytes):
    with pytest.raises(MalformedJson):
        decode_request(body)


GOOD = [
    b'{"type":"t"}',
    b'{"type":"t","payload":{"a":[1,"\xc3\xa9"]},"id":"mine","trace":"x"}',
    b'{"type":"t","payload":"' + b"[" * 500 + b'"}',
    b'{"type":"t","type":"u","queue":"default","run_at":"2026-01-01T00:00:00Z","backoff":{"base_ms":700000}}',
]


def test_many_bodies_are_read_as_each_by_itself():
    assert decode_requests(GOOD) == [decode_request(body) for body in GOOD]
    assert decode_requests([]) == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"type":"t"} x', b'{"type":"\xff"}', b'{"type":"t","payload":"\\ud800"}',
        b'{"type":"t","payload":' + b"[" * 64 + b"]" * 64 + b"}", b'{"type":"t","payload":' + b"[" * 100_000,
        b'{"type":"t t"}', b'{"colour":1,"type":"t"}', b'{"type":"t","id":".."}', b'{"type":"t"},{"type":"t"}',
    ],
)  # fmt: skip
def test_many_bodies_of_which_one_is_refused_are_read_one_by_one(body: bytes):
    with pytest.raises((InvalidField, MalformedJson)):
        decode_request(body)
    assert decode_requests([*GOOD, body, *GOOD]) is None


@pytest.mark.parametrize("depth", [1, 62, 63, 64, 65, 200])
@pytest.mark.parametrize("pad", [b"", b" " * 200])
def test_items_that_look_shallow_make_no_array_that_is_too_deep(depth: int, pad: bytes):
    item = b"[" * depth + pad + b"]" * depth
    if all_shallow([b"1", item]):
        check_json(b"[1," + item + b"]")
    if depth >= 64:
        with pytest.raises(MalformedJson):
            check_json(b"[1," + item + b"]")


def test_brackets_in_strings_are_no_depth():
    request, _ = decode_request(b'{"type":"t","payload":"' + b"[" * 500 + b'"}')
    assert request.payload == "[" * 500


class TestEvent:
    def test_defaults_are_filled_in(self):
        event = event_of(type="t")
        assert (event.queue, event.pool, event.priority, event.max_attempts) == (
            "default",
            "default",
            "normal",
            5,
        )
        assert (event.id, event.job, event.at) == ("enq.made", "made", 7)
        assert event.backoff == Backoff()

    def test_null_is_as_not_given(self):
        nulls = dict.fromkeys(
            ("id", "queue", "priority", "run_at", "backoff", "max_attempts", "tags", "metadata")
        )
        event = event_of(type="t", **nulls)
        assert msgspec.structs.replace(event, request_hash="") == msgspec.structs.replace(
            event_of(type="t"), request_hash=""
        )

    def test_every_field_arrives_and_survives_the_log(self):
        fields = {
            "type": "t", "id": "j~h", "payload": {"a": "line\nbreak"}, "queue": "q", "pool": "p",
            "priority": "high", "tags": ["a", "b"], "metadata": {"k": [1]}, "run_at": "2026-01-01T01:00:00.1239+01:00",
            "delay_ms": 5, "timeout_ms": 6, "expires_at": "2027-01-01T00:00:00Z", "max_attempts": 2,
            "backoff": {"kind": "fixed", "base_ms": 3}, "trace": "00-ab",
        }  # fmt: skip
        event = event_of(**fields)
        line = encode_line(event)
        assert b"\n" not in line
        read = decode_line(line)
        assert isinstance(read, Enqueued)
        assert read.run_at == 1_767_225_600_124
        assert (read.delay_ms, read.timeout_ms, read.max_attempts, read.tags) == (5, 6, 2, ("a", "b"))
        assert (read.backoff.kind, read.backoff.base_ms, read.trace, read.job) == ("fixed", 3, "00-ab", "j~h")
        assert json.loads(bytes(read.payload)) == {"a": "line\nbreak"}
        assert json.loads(bytes(read.metadata)) == {"k": [1]}

    @pytest.mark.parametrize(
        ("given", "max_ms"),
        [
            ({}, 600_000), ({"base_ms": 5}, 600_000), ({"base_ms": 700_000}, 700_000),
            ({"base_ms": 700_000, "max_ms": None}, 700_000), ({"base_ms": 5, "max_ms": 5}, 5),
        ],
    )  # fmt: skip
    def test_a_backoff_may_begin_above_the_usual_longest(self, given: dict[str, Any], max_ms: int):
        backoff = event_of(type="t", backoff=given).backoff
        assert type(backoff) is Backoff
        assert (backoff.base_ms, backoff.max_ms) == (given.get("base_ms", 1_000), max_ms)

    def test_a_backoff_that_contradicts_itself_is_refused(self):
        with pytest.raises(InvalidField, match="larger than max_ms") as raised:
            event_of(type="t", backoff={"base_ms": 6, "max_ms": 5})
        assert raised.value.details["field"] == "backoff.base_ms"

    def test_a_payload_is_measured_as_written(self):
        request, hashed = request_from({"type": "t", "payload": "x" * 98})
        enqueued_event(request, job_id="a", hashed=hashed, at_ms=0, max_payload_bytes=100)
        with pytest.raises(TooLarge, match="100 bytes, at most 99"):
            enqueued_event(request, job_id="a", hashed=hashed, at_ms=0, max_payload_bytes=99)

    def test_metadata_has_a_limit_of_its_own(self):
        with pytest.raises(TooLarge, match="metadata"):
            event_of(type="t", metadata={"a": "x" * MAX_METADATA_BYTES})

    @pytest.mark.parametrize("moment", ["1969-12-31T23:59:59Z", "0001-01-01T00:00:00+01:00"])
    def test_a_time_before_1970_is_refused(self, moment: str):
        with pytest.raises(InvalidField, match="run_at"):
            event_of(type="t", run_at=moment)


class TestFields:
    def test_a_backoff_object_cannot_say_that_its_longest_was_not_given(self):
        sent = request_fields("t", None, {"backoff": Backoff(base_ms=700_000)})
        assert event_of(**sent).backoff == Backoff(base_ms=700_000, max_ms=700_000)
        with pytest.raises(InvalidField, match="larger"):
            event_of(**request_fields("t", None, {"backoff": Backoff(base_ms=700_000, max_ms=500_000)}))

    def test_only_what_was_given_is_sent(self):
        assert request_fields("t", None, {"queue": None}) == {"type": "t"}

    def test_payloads_may_be_models(self):
        expected = {"path": "a.png", "size": {"width": 3}}
        image = Image(path="a.png", size=Size(3))
        assert request_fields("t", image)["payload"] == expected
        assert request_fields("t", [image, Size(4)])["payload"] == [expected, {"width": 4}]

    def test_options_may_be_python_values(self):
        fields = request_fields(
            "t",
            1,
            {"run_at": datetime(2026, 1, 1, tzinfo=UTC), "tags": ("a",), "backoff": Backoff(kind="fixed")},
        )
        sent = json.loads(msgspec.json.encode(fields))
        assert sent["run_at"] == "2026-01-01T00:00:00Z"
        assert (sent["tags"], sent["backoff"]["kind"]) == (["a"], "fixed")
        assert request_from(sent)[0].backoff == request_from(fields)[0].backoff

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(InvalidField, match="unknown option 'quue'"):
            fields_of({"type": "t", "quue": "x"})

    @pytest.mark.parametrize("payload", [object(), {"a": object()}, lambda: None])
    def test_what_json_cannot_say_is_refused(self, payload: Any):
        with pytest.raises(InvalidField, match="payload"):
            request_fields("t", payload)


@pytest.mark.parametrize("body", [
    {"type": "t"},
    {"type": "t", "payload": {"a": "line\nline"}, "metadata": {"m": None}},
    {"type": "t", "payload": None, "priority": "high", "pool": "gpu", "queue": "q", "tags": ["a", "b"]},
    {"type": "t", "run_at": "2026-01-01T00:00:00Z", "delay_ms": 3, "timeout_ms": 4, "max_attempts": 9},
    {"type": "t", "expires_at": "2027-01-01T00:00:00.5Z", "backoff": {"kind": "fixed"}},
])  # fmt: skip
def test_a_line_made_of_fields_is_the_event_s(body: dict[str, Any]):
    request, hashed = decode_request(json.dumps(body, indent=1).encode())
    fields = enqueued_fields(request, "j", hashed, 7, "acme", "api", "00-ab", 1_000)
    event = event_of_fields(fields)
    assert event == enqueued_event(
        request, job_id="j", hashed=hashed, at_ms=7, tenant="acme", actor="api", trace="00-ab"
    )
    assert line_of(fields) == encode_line(event)
    assert decode_line(line_of(fields)) == event
    assert b"\n" not in line_of(fields)


def test_what_was_not_given_takes_no_room_on_the_line():
    fields = enqueued_fields(JobRequest(type="t"), "j", "h", 7, "default", "", "", 1_000)
    line = {"type": "Enqueued", "id": "enq.j", "at": 7, "job": "j", "job_type": "t", "request_hash": "h"}
    assert json.loads(line_of(fields)) == line
    assert decode_line(line_of(fields)) == Enqueued(
        id="enq.j", at=7, job="j", job_type="t", request_hash="h", queue="default", pool="default",
        priority="normal", max_attempts=5, backoff=Backoff(),
    )  # fmt: skip


@pytest.mark.parametrize("payload", [math.nan, {"a": [1.5, -math.inf]}, {"a": {"b": math.inf}}])
def test_numbers_that_json_has_not_are_refused_and_not_made_null(payload: Any) -> None:
    with pytest.raises(InvalidField, match="payload: NaN and infinite"):
        request_fields("t", payload)


@pytest.mark.parametrize("name", ["penstock.operation", "penstock.x"])
def test_types_of_penstocks_own_are_nobody_elses(name: str) -> None:
    body = msgspec.json.encode({"type": name})
    with pytest.raises(InvalidField, match="Penstock's own") as caught:
        decode_request(body)
    assert caught.value.details["field"] == "type"
    assert decode_requests([body]) is None
    assert decode_requests([msgspec.json.encode({"type": "penstocks"})]) is not None
