"""How an attempt ended: a closed union, and the one place where it becomes a line of the log.

What a handler returns, raises, or is stopped by is an :data:`Outcome` from the moment it ends; nothing behind
that point is decided by exceptions or flags. Whatever a handler produces, the line can be written and read:
bodies that are too large, too deep or no JSON turn into failures that say so.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from penstock.client.requests import plain
from penstock.schemas.codec import depth_of
from penstock.schemas.errors import PenstockError
from penstock.schemas.events import NULL, AnyEvent, Failed, JobError, Returned, Snoozed, Succeeded
from penstock.schemas.limits import (
    MAX_DEPTH,
    MAX_DURATION_MS,
    MAX_ERROR_DETAILS_BYTES,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_PARTIAL_ERRORS,
    MAX_PARTIAL_ERRORS_BYTES,
    MAX_RESULT_BYTES,
)
from penstock.schemas.messages import Delivery
from penstock.workers.errors import HandlerError, RetryLater
from penstock.workers.transport import OutcomeEvent
from penstock.workers.values import Cancel, Partial, Retry, Snooze

MAX_BODY_DEPTH = MAX_DEPTH - 4
"""A body stands a few levels deep in its line."""

TRACE_FRAMES = 12

_NULL = b"null"

StopReason = Literal["timeout", "cancelled", "shutdown", "lost"]
"""Why a running handler is stopped."""


class Done(NamedTuple):
    """The handler returned; ``result`` is JSON, ``errors`` what of it failed."""

    result: bytes = _NULL
    errors: tuple[JobError, ...] = ()


class Errored(NamedTuple):
    """The attempt failed."""

    error: JobError
    retry_after_ms: int | None = None


class GivenBack(NamedTuple):
    """The job goes back unfinished, at no cost; ``cancel``: nobody is to do it any more."""

    reason: str
    cancel: bool = False


class PutOff(NamedTuple):
    """The job is to run later, at no cost."""

    delay_ms: int
    reason: str


class Dropped(NamedTuple):
    """Nobody wants an outcome: the lease is no longer held."""

    reason: str


NotDone = Errored | GivenBack | PutOff | Dropped
Outcome = Done | NotDone

_NOTHING = Done()


def event_of(outcome: Outcome, delivery: Delivery, run_ms: int, at_ms: int) -> OutcomeEvent | None:
    """The line that says so; None where there is nothing to say. Its id follows from the lease, so a repeat is
    a duplicate.
    """
    lease, actor = delivery.lease, f"worker:{delivery.worker}"
    if isinstance(outcome, Done):
        # Before the others, and not by a pattern: it is what nearly all of them are.
        return Succeeded(
            id=lease + ".s", job=delivery.job, tenant=delivery.tenant, actor=actor, trace=delivery.trace,
            at=at_ms, lease=lease, result=NULL if outcome is _NOTHING else Raw(outcome.result), run_ms=run_ms,
            errors=outcome.errors,
        )  # fmt: skip
    match outcome if delivery.rules >= SAYS_MORE else as_it_was_said(outcome):
        case Errored(error, retry_after_ms):
            return Failed(
                id=lease + ".f", job=delivery.job, tenant=delivery.tenant, actor=actor, trace=delivery.trace,
                at=at_ms, lease=lease, error=error, run_ms=run_ms, retry_after_ms=retry_after_ms,
            )  # fmt: skip
        case GivenBack(reason, cancel):
            return Returned(
                id=lease + ".r", job=delivery.job, tenant=delivery.tenant, actor=actor, trace=delivery.trace,
                at=at_ms, lease=lease, reason=reason, cancel=cancel,
            )  # fmt: skip
        case PutOff(delay_ms, reason):
            return Snoozed(
                id=lease + ".z", job=delivery.job, tenant=delivery.tenant, actor=actor, trace=delivery.trace,
                at=at_ms, lease=lease, delay_ms=delay_ms, reason=reason,
            )  # fmt: skip
        case Dropped():
            return None


SAYS_MORE = 2
"""Version of the rules since which a handler may put its job off, or cancel it."""


def as_it_was_said(outcome: NotDone) -> NotDone:
    """The nearest that a log of older rules understands: an attempt that failed, where it costs one."""
    match outcome:
        case PutOff(delay_ms, reason):
            return Errored(job_error("snoozed", reason, None, retryable=True), delay_ms)
        case GivenBack(reason, cancel=True):
            return permanent("cancelled", reason)
        case _:
            return outcome


def outcome_of(event: AnyEvent) -> Outcome:
    """The outcome that a line tells of, as :func:`event_of` wrote it.

    Raises:
        ValueError: it tells of none.
    """
    match event:
        case Succeeded():
            return Done(bytes(event.result), event.errors)
        case Failed():
            return Errored(event.error, event.retry_after_ms)
        case Returned():
            return GivenBack(event.reason, event.cancel)
        case Snoozed():
            return PutOff(event.delay_ms, event.reason)
        case _:
            raise ValueError(f"a {type(event).__name__} ends no attempt")


def resolve(stop: StopReason | None, stop_detail: str, value: Any, error: BaseException | None) -> Outcome:
    """What it means that a handler ended with ``value`` or ``error`` after it was (or was not) told to stop.

    A handler in a process of its own ends with an outcome as its value.
    """
    if stop is None and error is None:
        return returned_value(value)
    if stop in ("cancelled", "shutdown") and isinstance(value, Errored):
        return GivenBack(stop)
    match stop, error:
        case "lost", _:
            return Dropped(stop_detail)
        case "timeout", _:
            return timed_out(stop_detail)
        case _, None:
            return returned_value(value)
        case "cancelled" | "shutdown", _:
            return GivenBack(stop)
        case None, failure:
            return failed(failure)


def stopped(stop: StopReason, stop_detail: str) -> Outcome:
    """What to say of a handler that was told to stop and doesn't."""
    return resolve(stop, stop_detail, None, HandlerError("still running"))


def timed_out(detail: str) -> Errored:
    return Errored(JobError("timeout", detail or "the attempt ran longer than timeout_ms"))


# What a handler returned


def returned_value(value: Any, most_bytes: int = MAX_RESULT_BYTES) -> Outcome:
    """A result, or the failure of one that cannot be kept: with more than ``most_bytes``, for one."""
    if value is None:
        return _NOTHING
    if type(value) in _SAID:
        return _said(value, most_bytes)
    if type(value) in _OUTCOMES:
        return value
    try:
        result = to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        return permanent("invalid_result", f"the handler's result cannot be said in JSON: {error}")
    if len(result) > most_bytes:
        return result_too_large(len(result), most_bytes)
    if too_deep(result):
        return permanent("invalid_result", f"the result is nested deeper than {MAX_BODY_DEPTH}")
    return Done(result)


def result_too_large(size_bytes: int, most_bytes: int) -> Errored:
    """The failure of a result that is not kept."""
    return permanent("result_too_large", f"the result has {size_bytes} bytes, at most {most_bytes} are kept")


_SAID = frozenset({Retry, Snooze, Cancel, Partial})
_OUTCOMES = frozenset({Done, Errored, GivenBack, PutOff, Dropped})


def _said(value: Retry | Snooze | Cancel | Partial, most_bytes: int) -> Outcome:
    """What a handler says of its attempt, within the limits of the log."""
    match value:
        case Retry():
            after_ms = None if value.after_ms is None else _delay_ms(value.after_ms)
            return Errored(job_error(value.code, value.message, value.details, retryable=True), after_ms)
        case Snooze():
            return PutOff(_delay_ms(value.after_ms), _reason(value.reason))
        case Cancel():
            return GivenBack(_reason(value.reason), cancel=True)
        case Partial():
            outcome = returned_value(value.result, most_bytes)
            if not isinstance(outcome, Done) or not value.errors:
                return outcome
            errors = [
                job_error(one.code, one.message, one.details, retryable=False)
                for one in value.errors[:MAX_PARTIAL_ERRORS]
            ]
            return Done(outcome.result, within_a_line(errors))


def within_a_line(errors: Iterable[JobError]) -> tuple[JobError, ...]:
    """The errors of an outcome in part, as many as a line has room for: first details go, then whole errors."""
    kept: list[JobError] = []
    room = MAX_PARTIAL_ERRORS_BYTES
    for error in errors:
        size = len(msgspec.json.encode(error))
        if size > room:
            error = JobError(error.code, error.message, NULL, error.retryable)
            size = len(msgspec.json.encode(error))
        if size > room:
            break
        room -= size
        kept.append(error)
    return tuple(kept)


def _delay_ms(after_ms: float) -> int:
    return min(max(0, int(after_ms)), MAX_DURATION_MS)


def _reason(text: str) -> str:
    return clean(text)[:256]


def to_json(value: Any) -> bytes:
    """Anything JSON can say, and dataclasses, structs, pydantic models, dates, sets, paths and the like.

    Raises:
        TypeError, ValueError, RecursionError: it cannot be said.
    """
    encoded = msgspec.json.encode(value, enc_hook=plain)
    if b"\n" in encoded:
        # Only a Raw can bring one in, and it would tear the line.
        encoded = msgspec.json.encode(msgspec.json.decode(encoded))
    return encoded


def too_deep(encoded: bytes) -> bool:
    return encoded.count(b"{") + encoded.count(b"[") > MAX_BODY_DEPTH and depth_of(encoded) > MAX_BODY_DEPTH


# What a handler raised


def permanent(code: str, message: str, details: Any = None) -> Errored:
    """A failure that no other attempt can mend."""
    return Errored(job_error(code, message, details, retryable=False))


def failed(error: BaseException | None) -> Errored:
    """The failure that an exception stands for."""
    if error is None:
        return Errored(job_error("unknown", "the handler ended without a result", None, retryable=True))
    after_ms = error.after_ms if isinstance(error, RetryLater) else None
    details: dict[str, Any] = {"traceback": frames_of(error)}
    if isinstance(error, HandlerError):
        if error.details is not None:
            details["details"] = error.details
        return Errored(job_error(error.code, str(error), details, retryable=error.retryable), after_ms)
    if isinstance(error, PenstockError) and error.details:
        details["details"] = error.details
    return Errored(job_error(type(error).__name__, str(error), details, retryable=True), after_ms)


_RUNTIME = ("executor", "around", "dependencies", "context")
"""Modules of the runtime that stand between a handler and what called it."""


def frames_of(error: BaseException) -> list[str]:
    """The innermost frames of an exception, outermost first, without those of the runtime: ``file:line in
    function``.
    """
    own = __name__.rpartition(".")[0].replace(".", "/")
    frames = [
        f"{frame.filename}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.replace("\\", "/").endswith(tuple(f"{own}/{name}.py" for name in _RUNTIME))
    ]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        frames.insert(0, f"caused by {type(cause).__name__}: {str(cause)[:200]}")
    return frames[-TRACE_FRAMES:] if cause is None else [frames[0], *frames[1:][-TRACE_FRAMES:]]


def job_error(code: str, message: str, details: Any, *, retryable: bool) -> JobError:
    """An error within the limits of the log: shortened where it must be, and always text that can be written."""
    raw = b"null"
    if details is not None:
        try:
            raw = to_json(details)
        except (TypeError, ValueError, RecursionError):
            raw = to_json({"unprintable": clean(repr(details))[:1_000]})
        if len(raw) > MAX_ERROR_DETAILS_BYTES or too_deep(raw):
            raw = to_json(
                {"shortened": clean(raw[: MAX_ERROR_DETAILS_BYTES // 4].decode("utf-8", "replace"))}
            )
    return JobError(
        clean(code)[:256] or "unknown", clean(message)[:MAX_ERROR_MESSAGE_CHARS], Raw(raw), retryable
    )


def clean(text: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot say."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def field_errors(problems: Sequence[tuple[str, str]]) -> Errored:
    """The failure of a payload that does not fit: (field, message) pairs."""
    message = "; ".join(f"{field}: {text}" if field else text for field, text in problems[:5])
    if len(problems) > 5:
        message += f"; and {len(problems) - 5} more"
    return permanent(
        "invalid_payload", message, [{"field": field, "message": text} for field, text in problems[:50]]
    )
