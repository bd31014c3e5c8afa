"""Times as options of commands."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from penstock.schemas.errors import InvalidField

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_ms_of(name: str, text: str) -> int | None:
    """Unix milliseconds of the RFC 3339 time that option ``name`` was given; None for none. Raises InvalidField."""
    if not text:
        return None
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError as error:
        raise InvalidField(f"--{name}: {text!r} is not an RFC 3339 time", field=name) from error
    if moment.tzinfo is None:
        raise InvalidField(f"--{name}: {text!r} has no time zone (Z for UTC)", field=name)
    return round((moment - _EPOCH).total_seconds() * 1_000)
