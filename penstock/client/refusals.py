"""Why a body or a value is refused, in words by which whoever sent it can mend it: decoders say it for programmers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from penstock.schemas.errors import MalformedJson
from penstock.schemas.ids import IDEMPOTENCY_KEY_PATTERN, JOB_ID_PATTERN, NAME_PATTERN, exactly

_decode = msgspec.json.Decoder().decode
_decode_parts = msgspec.json.Decoder(dict[str, Raw]).decode

_WANTED = {
    NAME_PATTERN: "a name is 1 to 128 letters, digits and . _ - : /, no space, and begins with a letter, a digit or _",
    JOB_ID_PATTERN: "an id is 1 to 128 letters, digits and . _ - :, no space, and may go on with ~ and up to 64 more",
    IDEMPOTENCY_KEY_PATTERN: "1 to 200 visible ASCII characters",
}
_BY_REASON = {
    f"Expected `str` matching regex {exactly(pattern)!r}": text for pattern, text in _WANTED.items()
}

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def malformed(what: str, body: bytes, error: Exception) -> MalformedJson:
    """The error for what is no JSON, or says with an escape what is no text."""
    for escape in _ESCAPE.finditer(body):
        if escape["half"]:
            half = escape[0].decode()
            return MalformedJson(
                f"{what} has {half} without the other half of its pair: that is no character"
            )
    return MalformedJson(f"{what} is not JSON: {error}")


def unread_in(body: bytes) -> str:
    """The field of an object in which something is that JSON can say and we cannot hold; empty if none is found.

    A decoder that knows no fields tells only how deep it was.
    """
    try:
        parts = _decode_parts(body)
    except msgspec.DecodeError:
        return ""
    for name, part in parts.items():
        try:
            _decode(part)
        except msgspec.ValidationError:
            return name
    return ""


def told_better(reason: str, field: str, kind: Any) -> str:
    """What msgspec says about the field of a ``kind``: with the values that are allowed where they are few, and what a
    name may be instead of a pattern."""
    if reason.startswith("Invalid enum value"):
        allowed = dict.fromkeys(_values(kind, re.findall(r"[^.\[\]]+|\[", field)))
        return f"{reason}; allowed are {', '.join(allowed)}" if allowed else reason
    return _BY_REASON.get(reason, reason)


def _values(kind: Any, path: list[str]) -> Iterator[str]:
    """All that is allowed at the end of a path, in the order in which it was written down."""
    for one in _alternatives(kind):
        if not path:
            yield from map(str, get_args(one) if get_origin(one) is Literal else ())
        elif path[0] == "[":
            # After the bracket stands the number of the item, and all are alike.
            yield from _values(get_args(one)[0], path[2:]) if get_args(one) else ()
        elif isinstance(one, type) and issubclass(one, Struct):
            yield from _values(_fields(one).get(path[0]), path[1:])


def _alternatives(kind: Any) -> Iterator[Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif origin in (Union, UnionType):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


@cache
def _fields(kind: type[Struct]) -> Mapping[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
