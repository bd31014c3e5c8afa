"""Errors as ``application/problem+json`` (RFC 9457), the same shape from every route and for every cause.

``code`` is stable and is what programs compare; ``errors`` names the fields of a request that is not allowed; a 503
carries ``Retry-After``, and ``job_id`` where a job's id was fixed before the failure, so that a repeat is no second
job.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope

from penstock.schemas.errors import (
    BadRequest,
    ClaimDamaged,
    InvalidField,
    LogUnavailable,
    MethodNotAllowed,
    NotFound,
    PenstockError,
    PositionGone,
    TooLarge,
    UnsupportedMediaType,
)

log = logging.getLogger("penstock.api")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class FieldError(Struct, frozen=True):
    """One thing wrong with a request. ``message`` names the field."""

    field: str
    message: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong. ``code`` is stable; ``detail`` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    request_id: str = ""
    errors: list[FieldError] = []
    job_id: str = ""


_STANDARD = frozenset(Problem.__struct_fields__)
_encode = msgspec.json.Encoder(enc_hook=str).encode


def problem_of(error: PenstockError, *, instance: str = "", request_id: str = "") -> dict[str, Any]:
    """The body of a problem; details of the error that have no field of their own are added to it."""
    title = " ".join((type(error).__doc__ or type(error).__name__).split())
    body: dict[str, Any] = {
        "type": f"urn:penstock:problem:{error.code}",
        "title": title.rstrip("."),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "instance": instance,
        "request_id": request_id,
    }
    errors = field_errors(error)
    if errors:
        body["errors"] = errors
    details = {name: value for name, value in error.details.items() if name not in {"field", "errors"}}
    if details.get("job_id"):
        body["job_id"] = details["job_id"]
    body.update({name: value for name, value in details.items() if name not in _STANDARD})
    return body


def problem_at(scope: Scope, error: PenstockError) -> dict[str, Any]:
    """The body of a problem with the request or connection of that scope."""
    return problem_of(error, instance=scope.get("path", ""), request_id=scope.get("penstock.request_id", ""))


def field_errors(error: PenstockError) -> list[FieldError]:
    """The fields that an error names."""
    if "errors" in error.details:
        return list(cast("list[FieldError]", error.details["errors"]))
    if "field" in error.details:
        return [FieldError(str(error.details["field"]), error.message)]
    return []


def invalid(errors: list[FieldError]) -> InvalidField:
    """One error for all the fields that are wrong."""
    return InvalidField("; ".join(error.message for error in errors), errors=errors)


def respond(
    request: HTTPConnection, error: PenstockError, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer for an error."""
    body = problem_at(request.scope, error)
    sent = dict(headers or {})
    if error.status == 503:
        sent.setdefault("Retry-After", str(error.details.get("retry_after_s", RETRY_AFTER_S)))
    return Response(_encode(body), error.status, sent, MEDIA_TYPE)


async def on_penstock_error(request: Request, error: Exception) -> Response:
    """A known error becomes its problem; one that is our fault is logged."""
    assert isinstance(error, PenstockError)
    if isinstance(error, ClaimDamaged):
        # Its message says all there is to know: it is about the store, and not about the program.
        log.warning("%s", error.message, extra=_asked(request))
    elif error.status == 500:
        log.error("request failed", exc_info=error, extra=_asked(request))
    return respond(request, error)


_BY_STATUS: Mapping[int, type[PenstockError]] = {
    400: BadRequest,
    404: NotFound,
    405: MethodNotAllowed,
    410: PositionGone,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: InvalidField,
    503: LogUnavailable,
}


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown addresses and methods, bodies it cannot take."""
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        kind = BadRequest if error.status_code < 500 else PenstockError
    message = str(error.detail)
    if message == http.HTTPStatus(error.status_code).phrase:
        path, method = request.scope.get("path", ""), request.scope.get("method", "")
        message = f"There is nothing at {path}." if kind is NotFound else f"{method} is not known at {path}."
    return respond(request, kind(message), error.headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """What FastAPI's own validation refuses, for routes that use it."""
    found: list[FieldError] = []
    for entry in cast("Any", error).errors():
        field = ".".join(str(part) for part in entry["loc"][1:]) or "$"
        found.append(FieldError(field, f"{field}: {entry['msg']}"))
    return respond(request, invalid(found))


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A bug: the caller learns no more than the request's id, the log has the rest."""
    log.error("request failed unexpectedly", exc_info=error, extra=_asked(request))
    return respond(request, PenstockError("An unexpected error; the service's log says more."))


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The caller has gone: nobody reads this, but it is counted."""
    return Response(status_code=400)


def _asked(request: Request) -> dict[str, str]:
    """What a log line says of the request."""
    scope = request.scope
    return {"path": scope.get("path", ""), "request_id": scope.get("penstock.request_id", "")}
