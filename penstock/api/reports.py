"""From what a worker reports over HTTP to lines on the log, and from those to what the fold made of them.

A report must never be unwritable, or its job would run again and again until it is dead: what is too large is cut, and
a result that is too large fails the job with ``result_too_large``. Ids of lines come from the lease, so a report sent
twice is a duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Raw

from penstock.api.deps import ApiDeps
from penstock.api.gateway_models import (
    AnyReport,
    FailedReport,
    PartErrorReport,
    ProgressedReport,
    ReportItem,
    ReturnedReport,
    SnoozedReport,
    SucceededReport,
)
from penstock.api.remote_worker import RemoteWorker, partition_of_lease
from penstock.client.requests import invalid_field
from penstock.projections.port import VerdictView
from penstock.schemas.errors import BlobsUnavailable, LeaseLost, LogError, ReadBehind, ReadModelUnavailable
from penstock.schemas.events import NULL, Failed, JobError, Progressed, Returned, Snoozed, Succeeded
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import (
    CLAIM_ABOVE_BYTES,
    MAX_CHECKPOINT_BYTES,
    MAX_ERROR_DETAILS_BYTES,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_PROGRESS_MESSAGE_CHARS,
    MAX_RESULT_BYTES,
)
from penstock.schemas.position import Position
from penstock.workers.outcome import within_a_line

WRITE_S = 15.0
"""How long a report waits for the log."""

Line = Progressed | Succeeded | Failed | Returned | Snoozed

_decode: Any = msgspec.json.Decoder(AnyReport).decode
_encode = msgspec.json.Encoder().encode


class _Named(msgspec.Struct):
    job: Any = ""
    lease: Any = ""


_decode_named = msgspec.json.Decoder(_Named).decode


class Written(NamedTuple):
    """A line that stands on the log."""

    line: Line
    position: Position


class Invalid(Exception):
    """An event that is not written, and why."""


class Reports:
    """One worker's report."""

    def __init__(self, deps: ApiDeps, worker: str, remote: RemoteWorker | None) -> None:
        self._deps = deps
        self._worker = worker
        self._remote = remote

    async def take(self, events: Sequence[Raw]) -> list[ReportItem]:
        """Write every event that is valid, all of them at once, and tell what the fold made of each."""
        found: list[ReportItem | Written] = list(await asyncio.gather(*map(self._take_one, events)))
        written = [item for item in found if isinstance(item, Written)]
        verdicts = iter(await self._verdicts(written))
        return [item if isinstance(item, ReportItem) else _item(item.line, next(verdicts)) for item in found]

    async def _take_one(self, raw: Raw) -> ReportItem | Written:
        try:
            line = self._line(_decode(raw))
            partition = self._partition(line)
        except (Invalid, msgspec.DecodeError, RecursionError) as error:
            return _invalid(raw, error)
        try:
            async with asyncio.timeout(WRITE_S):
                line = await self._stored(line)
                return Written(line, await self._write(partition, line))
        except (LogError, BlobsUnavailable, TimeoutError) as error:
            message = str(error) or "the log has not acknowledged it in time"
            return ReportItem(job=line.job, lease=line.lease, outcome="unknown", message=message)

    def _partition(self, line: Line) -> int:
        partitions = self._deps.topics.partitions
        partition = partition_of_lease(line.lease, partitions)
        if partition is None or partition != partition_of(line.job, partitions):
            raise Invalid("lease: not a lease of this job")
        return partition

    async def _stored(self, line: Line) -> Line:
        """The same, with a claim in the place of a result that is too large for the log."""
        claims = self._deps.claims
        if claims is None or not isinstance(line, Succeeded):
            return line
        result = bytes(cast("Any", line.result))
        if len(result) <= CLAIM_ABOVE_BYTES:
            return line
        claim = await claims.keep(line.tenant, line.job, result)
        return msgspec.structs.replace(line, result=Raw(claim))

    async def _write(self, partition: int, line: Line) -> Position:
        """Through the session if it holds the lease, so that heartbeats name it until it is written."""
        remote = self._remote
        lease = None if remote is None else remote.session.held.get(line.lease)
        if lease is not None and lease.finished and not isinstance(line, Progressed):
            # A second outcome is not the lease's: the fold refuses it, and says why.
            lease = None
        if remote is not None and lease is not None:
            remote.reported(line.lease)
            try:
                place = await remote.session.report(lease, line)
            except LeaseLost:
                # It was lost while this came in: the fold has the last word all the same.
                place = await self._deps.gateway.hub.append(line)
            except BaseException:
                # Not written in time: from here on only the client's naming it keeps the lease.
                lease.line = b""
                raise
            if not isinstance(line, Progressed):
                remote.written(line.lease)
        else:
            place = await self._deps.gateway.hub.append(line)
        return Position(partition, place.offset, place.line_no)

    async def _verdicts(self, written: Sequence[Written]) -> list[VerdictView]:
        if not written:
            return []
        wanted = [(item.position, item.line.tenant, item.line.job, item.line.id) for item in written]
        try:
            return await self._deps.read_model.verdicts(wanted, self._deps.options.verdict_wait_ms)
        except (ReadBehind, ReadModelUnavailable) as error:
            return [VerdictView("unknown", error.message, None)] * len(written)

    # Lines

    def _line(self, report: AnyReport) -> Line:
        held = None if self._remote is None else self._remote.session.held.get(report.lease)
        common: dict[str, Any] = {
            "job": report.job,
            "lease": report.lease,
            "actor": f"worker:{self._worker}",
            "at": self._deps.now_ms(),
            "trace": "" if held is None else held.delivery.trace,
        }
        match report:
            case ProgressedReport():
                return self._progressed(report, common)
            case SucceededReport():
                claims = self._deps.claims
                most_bytes = MAX_RESULT_BYTES if claims is None else claims.max_bytes
                return _succeeded(report, common, most_bytes)
            case FailedReport():
                return Failed(
                    id=f"{report.lease}.f",
                    error=_error(report.error, retryable=report.error.retryable),
                    run_ms=report.run_ms or 0,
                    retry_after_ms=report.retry_after_ms,
                    **common,
                )
            case ReturnedReport():
                return Returned(id=f"{report.lease}.r", reason=report.reason, cancel=report.cancel, **common)
            case SnoozedReport():
                return Snoozed(
                    id=f"{report.lease}.z", delay_ms=report.delay_ms, reason=report.reason, **common
                )

    def _progressed(self, report: ProgressedReport, common: dict[str, Any]) -> Progressed:
        checkpoint = None
        if report.checkpoint is not None:
            checkpoint = _encode(report.checkpoint)
            if len(checkpoint) > MAX_CHECKPOINT_BYTES:
                raise Invalid(
                    f"checkpoint: {len(checkpoint)} bytes, at most {MAX_CHECKPOINT_BYTES} are allowed"
                )
        seq = report.seq or self._next_seq(report.lease)
        return Progressed(
            id=f"{report.lease}.p{seq}",
            seq=seq,
            percent=report.percent,
            message=report.message[:MAX_PROGRESS_MESSAGE_CHARS],
            checkpoint=None if checkpoint is None else Raw(checkpoint),
            **common,
        )

    def _next_seq(self, lease: str) -> int:
        """Grows with the clock, so that it goes on growing behind another gateway."""
        seqs = {} if self._remote is None else self._remote.progress_seqs
        seqs[lease] = max(self._deps.now_ms(), seqs.get(lease, 0) + 1)
        return seqs[lease]


def _succeeded(report: SucceededReport, common: dict[str, Any], most_bytes: int) -> Succeeded | Failed:
    result = NULL if report.result is None else Raw(_encode(report.result))
    size = len(bytes(result))
    run_ms = report.run_ms or 0
    if size > most_bytes:
        message = f"the result has {size} bytes, at most {most_bytes} are kept"
        error = JobError(code="result_too_large", message=message, retryable=False)
        return Failed(id=f"{report.lease}.f", error=error, run_ms=run_ms, **common)
    errors = within_a_line(_error(error, retryable=False) for error in report.errors)
    return Succeeded(id=f"{report.lease}.s", result=result, run_ms=run_ms, errors=errors, **common)


def _error(error: PartErrorReport, *, retryable: bool) -> JobError:
    details = NULL if error.details is None else Raw(_encode(error.details))
    if len(bytes(details)) > MAX_ERROR_DETAILS_BYTES:
        details = Raw(_encode({"dropped": f"{len(bytes(details))} bytes, too large to be kept"}))
    message = error.message[:MAX_ERROR_MESSAGE_CHARS]
    return JobError(code=error.code, message=message, details=details, retryable=retryable)


def _invalid(raw: Raw, error: Exception) -> ReportItem:
    try:
        named = _decode_named(raw)
    except (msgspec.DecodeError, RecursionError):
        named = _Named()
    refused = isinstance(error, msgspec.ValidationError)
    message = invalid_field(error, kind=AnyReport).message if refused else str(error)
    return ReportItem(
        job=str(named.job)[:200], lease=str(named.lease)[:200], outcome="invalid", message=message
    )


def _item(line: Line, verdict: VerdictView) -> ReportItem:
    message = verdict.reason
    if isinstance(line, Failed) and line.error.code == "result_too_large":
        message = line.error.message
    return ReportItem(job=line.job, lease=line.lease, outcome=verdict.outcome, message=message)
