"""Lines and records as bytes: newline-delimited JSON, checked before it is decoded.

A line is refused (:class:`~penstock.schemas.errors.Undecodable`) with one of these reasons, which are part of
every fold's state and therefore never depend on a decoder's wording: ``too_large``, ``not_utf8``, ``too_deep``,
``not_json``, ``unknown_type``, ``invalid``.
"""

from __future__ import annotations

import re

import msgspec

from penstock.schemas.errors import Undecodable
from penstock.schemas.events import AnyEvent, Event
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES, MAX_DEPTH, MAX_LINE_BYTES

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(AnyEvent)
_decode = _decoder.decode
_decode_lines = _decoder.decode_lines
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_OPENING = frozenset(b"[{")


def encode_line(event: Event) -> bytes:
    """One event as JSON bytes on one line, no newline at the end."""
    line = _encode(event)
    # Bodies are written as they came, and may have been laid out over several lines: inside JSON that is white space.
    return line.replace(b"\n", b" ") if b"\n" in line else line


def decode_line(line: bytes) -> AnyEvent:
    """Decode one line.

    Raises:
        Undecodable: with ``reason`` as listed in the module.
    """
    if len(line) > MAX_LINE_BYTES:
        raise Undecodable(
            f"line of {len(line)} bytes, at most {MAX_LINE_BYTES} are allowed", reason="too_large"
        )
    if not line.isascii():
        check_utf8(line)
    if not _shallow(line) and depth_of(line) > MAX_DEPTH:
        raise Undecodable(f"nested deeper than {MAX_DEPTH}", reason="too_deep")
    try:
        return _decode(line)
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


def decode_bundle(value: bytes, lines: list[bytes]) -> list[AnyEvent] | None:
    """Events of a record, one for each of its lines, or None where the lines have to be looked at one by one.

    Only a faster way to what :func:`decode_line` gives: None for whatever it might not give alike.

    Args:
        lines: what :func:`split` made of ``value``.
    """
    if len(lines) < _FEWEST_AT_ONCE or not value.isascii() or max(map(len, lines)) > MAX_LINE_BYTES:
        return None
    # Each line begins and ends as an object does. So no value can go on over the end of a line (neither an object, an
    # array nor a string may be followed by a brace), and as many values as lines means one on each.
    if value[:1] != b"{" or lines[-1][-1:] != b"}" or value.count(b"}\n{") != len(lines) - 1:
        return None
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH and not all(map(_shallow, lines)):
        return None
    try:
        events = _decode_lines(value)
    except msgspec.DecodeError:
        return None
    return events if len(events) == len(lines) else None


_FEWEST_AT_ONCE = 4


def _shallow(line: bytes) -> bool:
    """Certainly not nested too deep. (A shorter line that is cannot close its brackets, and is refused as JSON.)"""
    return len(line) <= 2 * MAX_DEPTH or line.count(b"{") + line.count(b"[") <= MAX_DEPTH


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
    """Deepest nesting of arrays and objects outside strings, up to where the line stops being JSON.

    Linear, however hostile.
    """
    if b"\\" in line:
        line = _ESCAPE.sub(b"", line)
    depth = deepest = 0
    # Without escapes, every second piece between quotes is outside strings.
    for bracket in b"".join(line.split(b'"')[::2]).translate(None, _NOT_BRACKETS):
        if bracket in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def split(value: bytes) -> list[bytes]:
    """Lines of a record, at most 32,768: what is beyond stays together as the last one, to be refused as a whole.

    Blank lines are kept, so that line numbers are what an editor shows; folders skip them. A record that is too
    large is one line.
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
