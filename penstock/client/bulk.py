"""Many jobs in few calls: requests in bodies of bounded size, and what became of all of them as one result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from penstock.client.identity import with_id
from penstock.client.requests import fields_of
from penstock.schemas.errors import InvalidField

Json = dict[str, Any]

BULK_LINES = 5_000
BULK_BYTES = 4_000_000
"""Of one call."""

_encode = msgspec.json.Encoder().encode


class BulkResult(msgspec.Struct):
    """What became of many jobs. ``items`` are the API's, in the order of the requests."""

    accepted: int = 0
    rejected: int = 0
    unknown: int = 0
    """Jobs of which the server could not say in time what became of them; send them again with their ids."""
    items: list[Json] = []

    def add(self, other: BulkResult) -> None:
        """Take in what became of the requests that followed."""
        first = len(self.items)
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.unknown += other.unknown
        self.items.extend({**item, "index": first + item["index"]} for item in other.items)


class BulkPart(NamedTuple):
    """Requests of one call. ``refused`` are those not worth sending, as the API would answer of them."""

    body: bytes
    """NDJSON, each request with an id of its own; empty if none is worth sending."""
    places: list[int]
    """Where those in the body stand among the part's requests."""
    refused: list[Json]

    def result(self, answer: Json) -> BulkResult:
        """What became of all of them, from the answer about those that were sent."""
        items: list[Json] = [{**item, "index": self.places[item["index"]]} for item in answer["items"]]
        items += self.refused
        items.sort(key=lambda item: item["index"])
        rejected = answer["rejected"] + len(self.refused)
        return BulkResult(answer["accepted"], rejected, answer.get("unknown", 0), items)


NOTHING_SENT: Json = {"accepted": 0, "rejected": 0, "items": []}
"""The answer about a part without a body."""


def bulk_parts(requests: Iterable[Mapping[str, Any]]) -> Iterator[BulkPart]:
    """Requests in parts of bounded size. A bad one stops no other."""
    part, lines, size_bytes = BulkPart(b"", [], []), list[bytes](), 0
    for request in requests:
        place = len(part.places) + len(part.refused)
        try:
            line = _encode(with_id(fields_of(request)))
        except InvalidField as error:
            part.refused.append(_refused(place, error))
            continue
        if lines and (len(lines) >= BULK_LINES or size_bytes + len(line) >= BULK_BYTES):
            yield part._replace(body=b"\n".join(lines))
            part, lines, size_bytes, place = BulkPart(b"", [], []), [], 0, 0
        part.places.append(place)
        lines.append(line)
        size_bytes += len(line) + 1
    if part.places or part.refused:
        yield part._replace(body=b"\n".join(lines))


def _refused(place: int, error: InvalidField) -> Json:
    field = {"field": str(error.details.get("field", "$")), "message": error.message}
    return {
        "index": place,
        "status": "rejected",
        "code": error.code,
        "message": error.message,
        "errors": [field],
    }
