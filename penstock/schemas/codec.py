"""Lines and records as bytes: newline-delimited JSON, checked before it is decoded.

A line is refused (:class:`~penstock.schemas.errors.Undecodable`) with one of these reasons, which are part of
every fold's state and therefore never depend on a decoder's wording: ``too_large``, ``not_utf8``, ``too_deep``,
``not_json``, ``unknown_type``, ``invalid``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Union, cast, get_args

import msgspec

from penstock.schemas.errors import Undecodable
from penstock.schemas.events import AnyEvent, Event
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES, MAX_DEPTH, MAX_LINE_BYTES
from penstock.schemas.names import any_misnamed, misnamed

_encode = msgspec.json.Encoder().encode
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_OPENING = frozenset(b"[{")


def encode_line(event: Event) -> bytes:
    """One event as JSON bytes on one line, no newline at the end."""
    line = _encode(event)
    # Bodies are written as they came, and may have been laid out over several lines: inside JSON that is white space.
    return line.replace(b"\n", b" ") if b"\n" in line else line


def encode_text(value: object) -> str:
    """A value as JSON text, for lines that are put together from parts. No newline is in it."""
    return _encode(value).decode()


def check_utf8(line: bytes) -> None:
    """Strict UTF-8: a decoder that keeps raw parts would pass bad bytes on.

    Raises:
        Undecodable: reason ``not_utf8``.
    """
    try:
        line.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise Undecodable(f"not UTF-8: {error.reason} at byte {error.start}", reason="not_utf8") from error


_FEWEST_AT_ONCE = 4


def _shallow(line: bytes) -> bool:
    """Certainly not nested too deep. (A shorter line that is cannot close its brackets, and is refused as JSON.)"""
    return len(line) <= 2 * MAX_DEPTH or _opened(line) <= MAX_DEPTH


def _opened(value: bytes) -> int:
    """Opening brackets. (To leave them out is several times as fast as to count them: few bytes are any.)"""
    return 2 * len(value) - len(value.replace(b"{", b"")) - len(value.replace(b"[", b""))


class _Tag(msgspec.Struct):
    type: str = ""


_tag_decoder = msgspec.json.Decoder(_Tag)


class LineDecoder:
    """Decodes lines as a program does that knows these events and these fields of them, and no others.

    Args:
        kinds: the types of events it knows.
        later_fields: fields by type that it does not know: they are ignored, as any unknown field is.
    """

    def __init__(
        self,
        kinds: Sequence[type[Event]] = get_args(AnyEvent),
        later_fields: Mapping[type[Event], frozenset[str]] | None = None,
    ) -> None:
        reduced = {kind: _without(kind, names) for kind, names in (later_fields or {}).items()}
        self._kind_of: dict[type[Any], type[Any]] = {known: kind for kind, known in reduced.items()}
        known = [reduced.get(kind, kind) for kind in kinds]
        self._tags = frozenset(str(kind.__struct_config__.tag) for kind in known)
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Union[tuple(known)])  # noqa: UP007 - made at run time
        self._whole = None if not reduced else LineDecoder(kinds)
        """Of the same types with all their fields."""
        self._later = {kind: _defaults_of(kind, names) for kind, names in (later_fields or {}).items()}
        self._decode = decoder.decode
        self._decode_lines = decoder.decode_lines

    def decode_line(self, line: bytes) -> AnyEvent:
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
            event = self._decode(line)
        except msgspec.ValidationError as error:
            raise Undecodable(str(error), reason=self._reason_of(line)) from error
        except msgspec.DecodeError as error:
            raise Undecodable(str(error), reason="not_json") from error
        if self._kind_of:
            event = self._completed(event)
        field = misnamed(event)
        if field:
            raise Undecodable(f"what stands there is no such name - at `$.{field}`", reason="invalid")
        return event

    def decode_bundle(self, value: bytes, lines: list[bytes]) -> list[AnyEvent] | None:
        """Events of a record, one for each of its lines, or None where the lines have to be looked at one by one.

        Only a faster way to what :meth:`decode_line` gives: None for whatever it might not give alike.

        Args:
            lines: what :func:`split` made of ``value``.
        """
        if self._whole is not None:
            # Where no line has a field that is not known, it is all the same whether they are known.
            events = self._whole.decode_bundle(value, lines)
            return None if events is None or any(map(self._tells_more, events)) else events
        if len(lines) < _FEWEST_AT_ONCE or not value.isascii() or max(map(len, lines)) > MAX_LINE_BYTES:
            return None
        # Each line begins and ends as an object does. So no value can go on over the end of a line (neither an object,
        # an array nor a string may be followed by a brace), and as many values as lines means one on each.
        if value[:1] != b"{" or lines[-1][-1:] != b"}" or value.count(b"}\n{") != len(lines) - 1:
            return None
        # Each line has one bracket at least, so one of them with too many would make as many more in all.
        if _opened(value) >= MAX_DEPTH + len(lines) and not all(map(_shallow, lines)):
            return None
        try:
            events = self._decode_lines(value)
        except msgspec.DecodeError:
            return None
        return None if len(events) != len(lines) or any_misnamed(events) else events

    def _tells_more(self, event: AnyEvent) -> bool:
        """Whether a field that this decoder does not know has anything but its default."""
        later = self._later.get(type(event))
        return later is not None and any(getattr(event, name) != default for name, default in later)

    def _completed(self, event: Any) -> AnyEvent:
        """The event as its whole type, with defaults in fields that are not known."""
        kind = self._kind_of.get(cast("type[Any]", type(event)))
        return event if kind is None else kind(**msgspec.structs.asdict(event))

    def _reason_of(self, line: bytes) -> str:
        try:
            return "invalid" if _tag_decoder.decode(line).type in self._tags else "unknown_type"
        except msgspec.ValidationError:
            return "invalid"
        except msgspec.DecodeError:
            return "not_json"


def _defaults_of(kind: type[Event], names: frozenset[str]) -> list[tuple[str, Any]]:
    return [(one.name, one.default) for one in msgspec.structs.fields(kind) if one.name in names]


def _without(kind: type[Event], names: frozenset[str]) -> type[Any]:
    """The type as it was before it had these fields."""
    config = kind.__struct_config__
    field = cast("Any", msgspec.field)
    kept: list[tuple[str, Any, Any]] = [
        (one.name, one.type, field(default=one.default, default_factory=one.default_factory))
        for one in msgspec.structs.fields(kind)
        if one.name not in names
    ]
    return msgspec.defstruct(
        kind.__name__, kept, kw_only=True, frozen=True, gc=False, tag_field=config.tag_field, tag=config.tag
    )


_current = LineDecoder()
decode_line = _current.decode_line
"""As a :class:`LineDecoder` of everything that this program knows."""
decode_bundle = _current.decode_bundle
"""As a :class:`LineDecoder` of everything that this program knows."""


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
