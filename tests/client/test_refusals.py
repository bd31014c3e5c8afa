"""What is told to whoever sent something wrong: what is wrong with it, and what would be right."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.api.events import EventsQuery
from penstock.api.models import JobQuery, ListQuery, decode_job
from penstock.api.operations import OperationRequest
from penstock.api.search import SearchRequest
from penstock.client.requests import decode_request, invalid_field
from penstock.schemas.errors import InvalidField, MalformedJson

NAME = "a name is 1 to 128 letters, digits and . _ - : /, no space, and begins with a letter, a digit or _"
ID = "an id is 1 to 128 letters, digits and . _ - :, no space, and may go on with ~ and up to 64 more"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": ":x"}, f"type: {NAME}"),
        ({"type": "-x"}, f"type: {NAME}"),
        ({"type": "t" * 129}, f"type: {NAME}"),
        ({"type": "t", "tags": ["a", "b c"]}, f"tags[1]: {NAME}"),
        ({"type": "t", "id": "i" * 129}, f"id: {ID}"),
        ({"type": "t", "idempotency_key": "a b"}, "idempotency_key: 1 to 200 visible ASCII characters"),
    ],
)
def test_what_a_name_is(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        decode_request(msgspec.json.encode(fields))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (OperationRequest, {"action": "x"}, "action: .*retry, cancel, delete, move, hold, unhold, priority, requeue$"),
        (OperationRequest, {"action": "hold", "filter": {"state": ["x"]}}, r"state\[0\]: .* scheduled, blocked,"),
        (OperationRequest, {"action": "hold", "filter": {"priority": "x"}}, r"critical, high, normal, low$"),
        (SearchRequest, {"sort": "x"}, "sort: .*; allowed are created_at, -created_at, scheduled_at,"),
        (JobQuery, {"until": "x"}, "until: .*; allowed are finished, changed$"),
        (ListQuery, {"priority": "x"}, "priority: .*; allowed are critical, high, normal, low$"),
        (EventsQuery, {"state": "x"}, "state: .*; allowed are scheduled, blocked,"),
    ],
)  # fmt: skip
def test_what_is_allowed_where_it_is_little(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, kind)
    with pytest.raises(InvalidField, match=message):
        raise invalid_field(caught.value, kind=kind)


@pytest.mark.parametrize("text", [r"\ud800", r"\uD800xxxxxxxx", r"\udc00", r"\ud800A", r"\\\ud83d\ud83d"])
def test_half_of_a_character_is_called_so(text: str) -> None:
    with pytest.raises(MalformedJson, match=r"the body has \\u[dD]\w{3} without the other half of its pair"):
        decode_request(b'{"type":"t","payload":"%s"}' % text.encode())


@pytest.mark.parametrize("body", [rb'{"payload":"\\ud800', rb'{"payload":"\ud83d\ude00'])
def test_and_what_is_cut_off_is_called_that(body: bytes) -> None:
    with pytest.raises(MalformedJson, match="the body is not JSON: Input data was truncated"):
        decode_request(body)


@pytest.mark.parametrize("value", ["1e400", '{"n":1e400}', '[{"n":[0,1e400]}]'])
@pytest.mark.parametrize("field", ["payload", "metadata"])
def test_a_number_that_is_too_large_is_told_with_its_field(field: str, value: str) -> None:
    with pytest.raises(InvalidField) as caught:
        decode_job(b'{"type":"t","%s":%s}' % (field.encode(), value.encode()))
    assert caught.value.message == f"{field}: Number out of range"
    assert [error.field for error in caught.value.details["errors"]] == [field]
