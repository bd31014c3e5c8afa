"""How a process asks a projection process: frames over TCP, many requests under way on one connection.

A frame is its length (4 bytes, big-endian) and that many bytes of JSON: bodies of jobs are raw JSON already and pass
through unread. A client's first frame is :class:`Hello`, and is answered like a request, with id 0; then come
:class:`Request` frames, each answered by one :class:`Response` with its id, in any order. Only for the inside of a
cluster: there is no authentication.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import Raw, Struct

from penstock.projections.port import JobFilter, JobsQuery, Moment, SearchQuery
from penstock.schemas.errors import (
    BadRequest,
    InvalidCursor,
    InvalidField,
    PenstockError,
    ReadBehind,
    ReadModelUnavailable,
)
from penstock.schemas.position import Position

VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH_BYTES = 4


class Hello(Struct, frozen=True):
    """Which log the client means: a port may have passed on to another cluster's process."""

    version: int
    cluster_id: str
    topic: str


class Wait(Struct, frozen=True, tag="wait"):
    positions: dict[int, Position]
    timeout_ms: int


class GetJob(Struct, frozen=True, tag="job"):
    tenant: str
    job: str


class GetJobAsOf(Struct, frozen=True, tag="job_as_of"):
    tenant: str
    job: str
    moment: int | None
    packed: int


class GetHistory(Struct, frozen=True, tag="history"):
    tenant: str
    job: str
    limit: int
    cursor: str


class GetVerdicts(Struct, frozen=True, tag="verdicts"):
    wanted: list[tuple[Position, str, str, str]]
    timeout_ms: int
    unique_keys: list[str] = []


class GetOutcomes(Struct, frozen=True, tag="outcomes"):
    lines: list[tuple[Position, str, str]]
    wanted: JobFilter


class GetOutcomesNewer(Struct, frozen=True, tag="outcomes_newer"):
    """As ``GetOutcomes``, of a filter that a process from before it would misread."""

    lines: list[tuple[Position, str, str]]
    wanted: JobFilter


class ListJobs(Struct, frozen=True, tag="list"):
    query: JobsQuery
    partitions: list[int]


class SearchJobs(Struct, frozen=True, tag="search"):
    query: SearchQuery
    partitions: list[int]


class SearchJobsAt(Struct, frozen=True, tag="search_at"):
    """As ``SearchJobs``, with the query's ``at``: a process that does not know it must not answer what is."""

    query: SearchQuery
    partitions: list[int]


class SearchNewer(Struct, frozen=True, tag="search_newer"):
    """As both of these, of a filter that a process from before it would misread: see ``JobFilter.is_newer``."""

    query: SearchQuery
    partitions: list[int]


class ListOperated(Struct, frozen=True, tag="operated"):
    operation: str
    limit: int
    cursor: str
    partitions: list[int]


class GetCounts(Struct, frozen=True, tag="counts"):
    tenant: str
    partitions: list[int]


class GetCountsAt(Struct, frozen=True, tag="counts_at"):
    tenant: str
    at: Moment
    partitions: list[int]


class GetCountsAmong(Struct, frozen=True, tag="counts_among"):
    """As both of these, of one batch or workflow."""

    tenant: str
    at: Moment | None
    among: JobFilter
    partitions: list[int]


class ListQuarantined(Struct, frozen=True, tag="quarantined"):
    limit: int
    cursor: str
    partitions: list[int]


class GetStatus(Struct, frozen=True, tag="status"):
    partitions: list[int]


Call = (
    Wait | GetJob | GetJobAsOf | GetHistory | GetVerdicts | GetOutcomes | GetOutcomesNewer | ListJobs
    | SearchJobs | SearchJobsAt | SearchNewer | ListOperated | GetCounts | GetCountsAt
    | GetCountsAmong | ListQuarantined | GetStatus
)  # fmt: skip


class Numbered(Struct, frozen=True):
    """What can be told of any request, also of a newer version's."""

    id: int = 0


class Request(Struct, frozen=True):
    id: int
    call: Call


class Problem(Struct, frozen=True):
    """An error as it crosses the wire."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Response(Struct, frozen=True):
    """``problem`` or ``answer``: the JSON of what the read model returns for the call."""

    id: int
    answer: Raw = Raw(b"null")
    problem: Problem | None = None


_ERRORS: dict[str, type[PenstockError]] = {
    kind.code: kind for kind in (ReadBehind, ReadModelUnavailable, InvalidCursor, InvalidField, BadRequest)
}

encode = msgspec.json.Encoder().encode
decode_hello = msgspec.json.Decoder(Hello).decode
decode_request = msgspec.json.Decoder(Request).decode
decode_numbered = msgspec.json.Decoder(Numbered).decode
decode_response = msgspec.json.Decoder(Response).decode


def problem_of(error: PenstockError) -> Problem:
    return Problem(error.code, error.message, error.details)


def error_of(problem: Problem) -> PenstockError:
    """The error to raise where the answer was wanted; one of a kind unknown here means the process is of no use."""
    kind = _ERRORS.get(problem.code)
    if kind is None:
        return ReadModelUnavailable(f"{problem.code}: {problem.message}")
    return kind(problem.message, **problem.details)


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame, None at an orderly end. Raises ConnectionError when the stream breaks or holds no frames."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if length > MAX_FRAME_BYTES:
            raise ConnectionError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ConnectionError("the connection ended in the middle of a frame") from error
        return None


def frame(message: Struct) -> bytes:
    """A message as it goes over the wire."""
    data = encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data
