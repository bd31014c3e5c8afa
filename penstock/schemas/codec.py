"""Lines and records as bytes: newline-delimited JSON, checked before it is decoded.

A line is refused (:class:`~penstock.schemas.errors.Undecodable`) with one of these reasons, which are part of every fold's
state and therefore never depend on a decoder's wording: ``too_large``, ``not_utf8``, ``too_deep``, ``not_json``,
``unknown_type``, ``invalid``.
"""

from __future__ import annotations

import re

import msgspec

from penstock.schemas.errors import Undecodable
from penstock.schemas.events import AnyEvent, Event
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES, MAX_DEPTH, MAX_LINE_BYTES

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]|[\]}]")

encode_line = _encoder.encode
"""One event as JSON bytes, no newline at the end."""


def decode_line(line: bytes) -> AnyEvent:
    """Decode one line.

    Raises:
        Undecodable: with ``reason`` as listed in the module.
    """
    if len(line) > MAX_LINE_BYTES:
        raise Undecodable(f"line of {len(line)} bytes, at most {MAX_LINE_BYTES} are allowed", reason="too_large")
    if not line.isascii():
        check_utf8(line)
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and depth_of(line) > MAX_DEPTH:
        raise Undecodable(f"nested deeper than {MAX_DEPTH}", reason="too_deep")
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        raise Undecodable(str(error), reason=_reason_of(line)) from error
    except msgspec.DecodeError as error:
        raise Undecodable(str(error), reason="not_json") from error


def check_utf8(line: bytes) -> None:
    """Strict UTF-8: a decoder that keeps raw parts would pass bad bytes on.

    Raises:
        Undecodable: reason ``not_utf8``.
    """
    try:
        line.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise Undecodable(f"not UTF-8: {error.reason} at byte {error.start}", reason="not_utf8") from error


class _Tag(msgspec.Struct):
    type: str = ""


_KNOWN_TYPES = frozenset(str(member.__struct_config__.tag) for member in AnyEvent.__args__)
_tag_decoder = msgspec.json.Decoder(_Tag)


def _reason_of(line: bytes) -> str:
    try:
        return "invalid" if _tag_decoder.decode(line).type in _KNOWN_TYPES else "unknown_type"
    except msgspec.ValidationError:
        return "invalid"
    except msgspec.DecodeError:
        return "not_json"


def depth_of(line: bytes) -> int:
    """Deepest nesting of arrays and objects outside strings."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def split(value: bytes) -> list[bytes]:
    """Lines of a record, at most 32,768: what is beyond stays together as the last one, to be refused as a whole.

    Blank lines are kept, so that line numbers are what an editor shows; folders skip them. A record that is too large is
    one line.
    """
    if len(value) > MAX_BUNDLE_BYTES:
        return [value]
    lines = value.split(b"\n", MAX_BUNDLE_LINES - 1)
    if not lines[-1]:
        lines.pop()
    return lines


def bundle(lines: list[bytes]) -> bytes:
    """Lines as one record value."""
    return b"\n".join(lines)


def event_type(event: Event) -> str:
    """The tag that tells this event's type on the log."""
    return type(event).__name__
