"""Reading ``GET /events``: server-sent events as dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec

from penstock.client.calls import API, Answer, Json, error_of

EVENTS = f"{API}/events"


def events_params(after: str, filters: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Query parameters of a stream that goes on behind ``after``."""
    return tuple((name, str(value)) for name, value in {"after": after, **filters}.items() if value)


class EventReader:
    """Takes a stream line by line."""

    def __init__(self) -> None:
        self._token = ""
        self._kind = ""
        self._data: list[str] = []

    def take(self, line: str) -> Json | None:
        """An event that ends with this line: with only its ``token`` where it says no more than how far the stream is.

        Raises:
            PenstockError: the server says why it ends the stream.
        """
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "id":
                    self._token = value
                case "event":
                    self._kind = value
                case "data":
                    self._data.append(value)
                case _:
                    pass
            return None
        kind, data = self._kind, "\n".join(self._data)
        self._kind, self._data = "", []
        if kind == "error":
            raise error_of(Answer(500, {}, data.encode()))
        if not self._token:
            return None
        if not data:
            return {"token": self._token}
        return {"token": self._token, **cast("dict[str, Any]", msgspec.json.decode(data))}


def read_events(lines: Iterable[bytes]) -> Iterator[Json]:
    """The events of a stream. Raises as :meth:`EventReader.take`."""
    reader = EventReader()
    for line in lines:
        event = reader.take(line.decode().rstrip("\r"))
        if event is not None:
            yield event
