"""Reading requests and writing answers: what every route needs, and how a route describes itself.

Routes are plain ASGI endpoints over msgspec types: a request of ten fields costs microseconds to check. The same types
make the OpenAPI document (:mod:`penstock.api.openapi`), so that it cannot say anything else than what is checked.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.problems import FieldError, invalid
from penstock.client.refusals import malformed
from penstock.client.requests import check_json, invalid_field
from penstock.schemas.errors import InvalidField, MalformedJson, TooLarge, UnsupportedMediaType
from penstock.schemas.position import Position, parse_token

JSON = "application/json"
NDJSON = "application/x-ndjson"
POSITION_HEADER = "Penstock-Position"
KEY_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,200}\Z")

Endpoint = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Answer(Struct, frozen=True):
    """A good answer of an operation. ``body`` is the type of the JSON, None where there is none or it is not JSON."""

    description: str
    body: Any = None
    media_type: str = JSON
    headers: Mapping[str, str] = {}


class Operation(Struct, frozen=True, kw_only=True):
    """One method at one address: how it is served, and all that the OpenAPI document says about it."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    tag: str
    answers: Mapping[int, Answer]
    query: Any = None
    """Struct whose fields are the query parameters."""
    body: Any = None
    body_required: bool = True
    body_media_types: tuple[str, ...] = (JSON,)
    headers: Mapping[str, str] = {}
    """Request headers with their descriptions."""
    problems: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return getattr(self.endpoint, "__name__", "operation")


class JsonAnswer(Response):
    """A JSON body that is encoded already. Its headers are put together without the detours of a general response."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str] | None) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if headers:
            self.raw_headers += [
                (name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()
            ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer from msgspec structs and plain values."""
    return JsonAnswer(_encode(body), status, headers)


# Bodies


def header(request: Request, name: bytes) -> str:
    """The first header of a name (in lower case); empty when there is none."""
    return _given_header(request, name) or ""


def _given_header(request: Request, name: bytes) -> str | None:
    for found, value in request.scope["headers"]:
        if found == name:
            return str(value, "latin-1")
    return None


def idempotency_key(request: Request) -> str:
    """What the header names this request with; empty without one. Raises InvalidField."""
    key = _given_header(request, KEY_HEADER.lower().encode())
    if key is not None and not _KEY.match(key):
        raise InvalidField(f"{KEY_HEADER}: 1 to 200 visible ASCII characters", field=KEY_HEADER)
    return key or ""


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case; empty when there is none."""
    return header(request, b"content-type").partition(";")[0].strip().lower()


def check_media_type(request: Request, *allowed: str) -> str:
    """The body's content type; JSON where none was given.

    Raises:
        UnsupportedMediaType: it is not one of ``allowed``.
    """
    found = media_type(request) or JSON
    if found not in allowed:
        raise UnsupportedMediaType(f"the content type is {found!r}, not {' or '.join(allowed)}")
    return found


def _check_announced(request: Request, most_bytes: int) -> None:
    announced = header(request, b"content-length")
    if announced.isdigit() and int(announced) > most_bytes:
        raise TooLarge(f"the body has {announced} bytes, at most {most_bytes} are allowed")


async def chunks(request: Request, most_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes in.

    Raises:
        TooLarge: it is longer than ``most_bytes``, by what its header says or by what came.
    """
    _check_announced(request, most_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > most_bytes:
            raise TooLarge(f"the body has more than the {most_bytes} bytes that are allowed")
        if chunk:
            yield chunk


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The whole body. Raises as :func:`chunks`."""
    _check_announced(request, most_bytes)
    # Not by way of the chunks: most bodies come in one piece, and are read in one step here.
    parts: list[bytes] = []
    received = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        received += len(part)
        if received > most_bytes:
            raise TooLarge(f"the body has more than the {most_bytes} bytes that are allowed")
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_json(request: Request, kind: type[T], most_bytes: int, *, empty: bytes = b"") -> T:
    """The body as ``kind``; ``empty`` stands for none.

    Raises:
        UnsupportedMediaType, TooLarge, MalformedJson: the body cannot be read.
        InvalidField: it can, but is not a ``kind``.
    """
    check_media_type(request, JSON)
    body = await read_body(request, most_bytes) or empty
    check_json(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise invalid_field(error, kind=kind) from error
    except msgspec.DecodeError as error:
        raise malformed("the body", body, error) from error
    except RecursionError as error:
        raise MalformedJson("the body is nested too deep") from error


# Query parameters and positions


def query(request: HTTPConnection, kind: type[T]) -> T:
    """Query parameters as ``kind``; empty ones count as not given.

    Raises:
        InvalidField: an unknown one, one given twice, or a value that is not allowed.
    """
    fields: dict[str, str] = {}
    twice: list[FieldError] = []
    for name, value in request.query_params.multi_items():
        if name in fields:
            twice.append(FieldError(name, f"{name} is given more than once"))
        if value:
            fields[name] = value
    known = msgspec.structs.fields(cast("type[msgspec.Struct]", kind))
    names = {field.encode_name for field in known}
    unknown = [
        FieldError(name, f"{name} is not a parameter here; there are {', '.join(sorted(names)) or 'none'}")
        for name in request.query_params
        if name not in names
    ]
    if twice or unknown:
        raise invalid([*unknown, *twice])
    try:
        found = msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid_field(error, kind=kind) from error
    # What would be taken for something else: the word null for nothing, a number for a time.
    mistaken = [
        FieldError(
            name, f"{name}: {fields[name]!r} is no {'time' if isinstance(value, datetime) else 'value'} here"
        )
        for name, value in ((field.encode_name, getattr(found, field.name)) for field in known)
        if name in fields and (value is None or (isinstance(value, datetime) and _is_number(fields[name])))
    ]
    if mistaken:
        raise invalid(mistaken)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def wanted_positions(request: Request, after: str | None, partitions: int) -> Mapping[int, Position]:
    """The positions that a read must have folded: those of the header and of ``?after=``.

    Raises:
        InvalidCursor: a token is not one, or names a partition that there is not.
    """
    texts = [text for text in (request.headers.get(POSITION_HEADER), after) if text]
    if not texts:
        return {}
    found = parse_token(",".join(texts))
    for partition in found:
        if partition >= partitions:
            raise InvalidField(f"after: there is no partition {partition}", field="after")
    return found
