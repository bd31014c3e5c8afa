"""Lines as bytes: golden for ever, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import fields

from penstock.schemas.codec import bundle, decode_bundle, decode_line, depth_of, encode_line, split
from penstock.schemas.errors import Undecodable
from penstock.schemas.events import AnyEvent, Enqueued, JobEvent, Progressed, Succeeded
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES, MAX_DEPTH, MAX_LINE_BYTES

GOLDEN = Path(__file__).with_name("golden")
LINES = (GOLDEN / "events_v1.ndjson").read_bytes().splitlines()
REFUSED: list[dict[str, str]] = json.loads((GOLDEN / "refused_v1.json").read_text(encoding="utf-8"))
KINDS: tuple[type[Any], ...] = get_args(AnyEvent)


@pytest.mark.parametrize(
    "line", LINES, ids=[f"{json.loads(line)['type']}-{n % 2}" for n, line in enumerate(LINES)]
)
def test_a_line_once_written_is_read_and_written_again_alike_for_ever(line: bytes) -> None:
    assert encode_line(decode_line(line)) == line


def test_the_golden_file_has_every_type_minimal_and_with_all_its_fields() -> None:
    minimal, full = ([json.loads(line) for line in LINES[start::2]] for start in (0, 1))
    assert (
        [line["type"] for line in minimal]
        == [line["type"] for line in full]
        == [kind.__name__ for kind in KINDS]
    )
    for kind, line in zip(KINDS, full, strict=True):
        assert set(line) == {"type", *kind.__struct_fields__}
    for kind, line in zip(KINDS, minimal, strict=True):
        assert set(line) == {"type", *required_fields(kind)}


def required_fields(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind) if field.required}


@pytest.mark.parametrize("case", REFUSED, ids=range(len(REFUSED)))
def test_b1_what_is_refused_and_why(case: dict[str, str]) -> None:
    line = bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode()
    with pytest.raises(Undecodable) as caught:
        decode_line(line)
    assert caught.value.reason == case["reason"]


def test_the_corpus_of_refused_lines_has_every_reason_that_fits_in_it() -> None:
    assert {case["reason"] for case in REFUSED} == {"not_utf8", "not_json", "unknown_type", "invalid"}


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return f'{{"type":"CopySealed","other":{opening * (depth - 1)}{closing * (depth - 1)}}}'.encode()


def test_nesting_is_allowed_to_its_limit() -> None:
    decode_line(nested(MAX_DEPTH))
    with pytest.raises(Undecodable) as caught:
        decode_line(nested(MAX_DEPTH + 1))
    assert caught.value.reason == "too_deep"
    # Brackets in strings don't nest; wide is not deep.
    decode_line(b'{"type":"CopySealed","other":"%s"}' % (b'[{\\"' * 500))
    decode_line(b'{"type":"CopySealed","other":[%s]}' % b",".join([b'{"a":[]}'] * 500))


@pytest.mark.parametrize("unit", [b'\\"', b'"', b'"\\', b'{"', b"[\\"])
def test_a_hostile_line_is_measured_in_one_pass(unit: bytes) -> None:
    line = b"{" * 70 + b'"' + unit * (MAX_LINE_BYTES // len(unit) - 100)
    with pytest.raises(Undecodable):
        decode_line(line)


def test_depth_of() -> None:
    cases = {
        b"1": 0,
        b"[]": 1,
        b'{"a":[{}]}': 3,
        b'"[["': 0,
        b'["\\"[["]': 1,
        b'["\\\\"],[[]]': 2,
        b"]]][": 0,
        b'"[[': 0,
    }
    assert {line: depth_of(line) for line in cases} == cases


PLAIN = b'{"type":"Succeeded","id":"s","job":"j","lease":"l"}'


@pytest.mark.parametrize(
    ("line", "at_once"),
    [
        (PLAIN, True),
        (PLAIN.replace(b'"j"', b'"a.b:c-d_e~f"'), True),
        (PLAIN.replace(b'"j"', b'"not a name"'), False),
        (PLAIN.replace(b'"j"', b'""'), False),
        (PLAIN.replace(b'"j"', b'"%s"' % (b"j" * 129)), False),
        (b'{"type":"CopySealed","id":"x"}', True),
        (b'{"type":"Enqueued","job":"j","job_type":"t","tags":["a","b"]}', True),
        (b'{"type":"Enqueued","job":"j","job_type":"not a name"}', False),
        (b'{"type":"Enqueued","job":"j","job_type":"t","queue":"not a name"}', False),
        (b'{"type":"Enqueued","job":"j","job_type":"t","tags":["a","not a name"]}', False),
        (b'{"type":"Enqueued","job":"j","job_type":"t","batch":"a","workflow":""}', True),
        (b'{"type":"Enqueued","job":"j","job_type":"t","batch":"not a name"}', False),
        (b'{"type":"Enqueued","job":"j","job_type":"t","batch":"a","workflow":"not a name"}', False),
        (nested(MAX_DEPTH), True),
        (nested(MAX_DEPTH + 1), False),
        (nested(MAX_DEPTH + 1, '{"a":', "}").replace(b":}", b":1}"), False),
    ],
)
def test_a_bundle_is_decoded_at_once_where_each_of_its_lines_is_one_event(line: bytes, at_once: bool) -> None:
    lines = [PLAIN, PLAIN, line, PLAIN]
    events = decode_bundle(bundle(lines), lines)
    assert (events is not None) == at_once
    if events is not None:
        assert events == [decode_line(one) for one in lines]
    else:
        with pytest.raises(Undecodable) as caught:
            decode_line(line)
        assert caught.value.reason in ("invalid", "too_deep")


def test_a_name_that_is_none_is_refused_by_its_field() -> None:
    with pytest.raises(Undecodable, match=r"`\$\.queue`"):
        decode_line(b'{"type":"Enqueued","job":"j","job_type":"t","queue":"not a name"}')


json_values = st.recursive(
    st.none() | st.booleans() | st.text() | st.sampled_from(['"', "\\", '\\"', "[", "]}", '"[']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(json_values, st.booleans())
def test_depth_is_that_of_the_value(value: Any, ascii_only: bool) -> None:
    def depth(part: Any) -> int:
        if isinstance(part, dict):
            return 1 + max(map(depth, part.values()), default=0)
        return 1 + max(map(depth, part), default=0) if isinstance(part, list) else 0

    assert depth_of(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")) == depth(
        value
    )


def test_a_line_may_be_as_long_as_its_limit() -> None:
    start = b'{"type":"CopySealed","other":"'
    line = start + b"x" * (MAX_LINE_BYTES - len(start) - 2) + b'"}'
    decode_line(line)
    with pytest.raises(Undecodable) as caught:
        decode_line(line + b" ")
    assert caught.value.reason == "too_large"


def test_a_body_laid_out_over_several_lines_still_makes_one_line() -> None:
    line = encode_line(Enqueued(job="j", job_type="t", payload=Raw(b'{\n  "a": "x\\ny"\r\n}')))
    assert b"\n" not in line
    event = decode_line(line)
    assert isinstance(event, Enqueued)
    assert json.loads(bytes(event.payload)) == {"a": "x\ny"}


def test_bodies_are_kept_as_written() -> None:
    line = b'{"type":"Succeeded","id":"s","job":"j","lease":"l","result":{"b":1.50,"a":1e999,"b":"\\u00e9"}}'
    event = decode_line(line)
    assert isinstance(event, Succeeded)
    assert bytes(event.result) == b'{"b":1.50,"a":1e999,"b":"\\u00e9"}'
    assert encode_line(event) == line


def test_unknown_fields_are_ignored_and_white_space_is_none_of_our_business() -> None:
    event = decode_line(b' { "later" : [1] , "type" : "CopySealed" , "id" : "x" } \r')
    assert (type(event).__name__, event.id) == ("CopySealed", "x")


def test_a_job_event_without_a_job_is_no_event() -> None:
    for kind in KINDS:
        if issubclass(kind, JobEvent):
            assert "job" in required_fields(kind)


def test_split_keeps_blank_lines_and_stops_at_the_most_lines() -> None:
    assert split(b"") == []
    assert split(b"a\n\nb\n") == [b"a", b"", b"b"]
    assert split(bundle([b"a", b"b"])) == [b"a", b"b"]
    assert split(b"\n" * (MAX_BUNDLE_LINES + 5))[-1] == b"\n" * 6
    assert len(split(b"x\n" * MAX_BUNDLE_LINES)) == MAX_BUNDLE_LINES
    whole = b"x\n" * (MAX_BUNDLE_BYTES // 2 + 1)
    assert split(whole) == [whole]


def test_a_checkpoint_may_be_left_out_or_be_null_or_anything() -> None:
    def read(extra: bytes) -> Progressed:
        event = decode_line(b'{"type":"Progressed","id":"p","job":"j","lease":"l","seq":1%s}' % extra)
        assert isinstance(event, Progressed)
        return event

    assert read(b"").checkpoint is None
    for body in (b"null", b"17", b'"x"', b'{"a":[1]}', b"[]"):
        event = read(b',"checkpoint":' + body)
        assert event.checkpoint is not None
        assert bytes(event.checkpoint) == body
        assert encode_line(event).endswith(b'"checkpoint":' + body + b"}")
    assert b"checkpoint" not in encode_line(Progressed(id="p", job="j", lease="l", seq=1, checkpoint=None))
