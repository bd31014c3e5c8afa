"""Every error that Penstock raises on purpose: one tree, one page.

The docstring of an error is its message when none is given. ``code`` is stable and is what programs compare;
``status`` is the HTTP status the API answers with; ``exit_code`` is what the CLI exits with.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PenstockError(Exception):
    """Something went wrong in Penstock."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None, /, **details: Any) -> None:
        doc = type(self).__doc__ or type(self).__name__
        super().__init__(message or " ".join(doc.split()))
        self.details: dict[str, Any] = details

    @property
    def message(self) -> str:
        return str(self.args[0])


# What a caller sent


class BadRequest(PenstockError):
    """The request cannot be read."""

    code = "bad_request"
    status = 400
    exit_code = 2


class MalformedJson(BadRequest):
    """The body is not well-formed JSON."""

    code = "malformed_json"


class MethodNotAllowed(PenstockError):
    """This address does not know the method."""

    code = "method_not_allowed"
    status = 405
    exit_code = 2


class UnsupportedMediaType(PenstockError):
    """The body has a content type that is not read here."""

    code = "unsupported_media_type"
    status = 415
    exit_code = 2


class InvalidField(PenstockError):
    """A field is unknown or its value is not allowed."""

    code = "invalid_field"
    status = 422
    exit_code = 2


class InvalidCursor(InvalidField):
    """The cursor or position is not one that this service gave out."""

    code = "invalid_cursor"


class TooLarge(PenstockError):
    """The body, payload or line is larger than allowed."""

    code = "too_large"
    status = 413
    exit_code = 2


class NotFound(PenstockError):
    """There is no such thing."""

    code = "not_found"
    status = 404
    exit_code = 4


class JobNotFound(NotFound):
    """There is no job with this id."""

    code = "job_not_found"


class JobForgotten(JobNotFound):
    """The job ended so long ago that it was forgotten; its history can still be asked for."""

    code = "job_forgotten"


class JobDeleted(JobNotFound):
    """The job was deleted; its history can still be asked for."""

    code = "job_deleted"


class Conflict(PenstockError):
    """The job's state does not allow this."""

    code = "conflict"
    status = 409
    exit_code = 5


class IdInUse(Conflict):
    """Another job with this id and a different body exists."""

    code = "id_in_use"


class OriginForbidden(PenstockError):
    """Pages of this origin may not ask."""

    code = "origin_forbidden"
    status = 403
    exit_code = 2


class PositionGone(PenstockError):
    """The log does not have what follows this position."""

    code = "position_gone"
    status = 410
    exit_code = 7


class UniqueConflict(Conflict):
    """Another job holds the unique key."""

    code = "unique_conflict"


class IdempotencyKeyReused(Conflict):
    """The idempotency key was used for another request."""

    code = "idempotency_key_reused"
    status = 422


# The log


class LogError(PenstockError):
    """The log failed."""

    code = "log_error"
    status = 503
    exit_code = 6


class LogUnavailable(LogError):
    """The log cannot be reached."""

    code = "log_unavailable"


class AppendRefused(LogError):
    """The record was not written."""

    code = "append_refused"


class RecordTooLarge(AppendRefused):
    """The record is larger than the topic allows."""

    code = "record_too_large"
    status = 413


class AppendUnknown(LogError):
    """The write was not acknowledged: it may be written, now or later."""

    code = "append_unknown"


class TopicMismatch(LogError):
    """A topic on the log is not as it must be."""

    code = "topic_mismatch"
    status = 500
    exit_code = 2


class LogCopying(LogError):
    """The log is a copy that is not complete yet: nothing may be read from it or written to it."""

    code = "log_copying"
    exit_code = 5


class LogCorrupt(LogError):
    """The log's own storage is damaged; it is not opened, so that nothing is skipped in silence."""

    code = "log_corrupt"
    status = 500
    exit_code = 7


class OffsetTrimmed(LogError):
    """The log begins after the wanted offset: history is missing."""

    code = "offset_trimmed"
    status = 500
    exit_code = 7


class OffsetBeyondEnd(LogError):
    """The log ends before the wanted offset: the topic was cut or made anew."""

    code = "offset_beyond_end"
    status = 500
    exit_code = 7


class HistoryChanged(LogError):
    """The record at a stored position is not the one that was folded: the topic was made anew."""

    code = "history_changed"
    status = 500
    exit_code = 7


# Objects beside the log


class BlobsUnavailable(PenstockError):
    """The store of large bodies, snapshots or archives does not answer."""

    code = "blobs_unavailable"
    status = 503
    exit_code = 6


class BlobMissing(PenstockError):
    """The object is not in the store."""

    code = "blob_missing"
    status = 404
    exit_code = 4


class ClaimMissing(PenstockError):
    """A body that lies beside the log is not in its store."""

    code = "claim_missing"
    status = 404
    exit_code = 4


class ClaimDamaged(PenstockError):
    """A body that lies beside the log is not what was written."""

    code = "claim_damaged"
    status = 500
    exit_code = 7


class ClaimsOff(PenstockError):
    """A body lies beside the log, and this process was not told where: PENSTOCK_CLAIMS says it."""

    code = "claims_off"
    status = 503
    exit_code = 2


class SnapshotDamaged(PenstockError):
    """The snapshot is not whole: what it names is missing, or is not what was written."""

    code = "snapshot_damaged"
    exit_code = 7


class ArchiveDamaged(PenstockError):
    """An archive of the log does not hold what it must."""

    code = "archive_damaged"
    exit_code = 7


class TrimRefused(PenstockError):
    """Nothing may be trimmed: what would go is still needed."""

    code = "trim_refused"
    status = 409
    exit_code = 5


# Lines and rules


class Undecodable(PenstockError):
    """A line on the log cannot be decoded."""

    code = "undecodable"
    status = 422

    def __init__(self, message: str | None = None, /, *, reason: str = "undecodable", **details: Any) -> None:
        super().__init__(message, **details)
        self.reason = reason


class UnknownRules(PenstockError):
    """The log has activated rules that this version does not know. Upgrade before going on."""

    code = "unknown_rules"
    exit_code = 8


class DigestMismatch(PenstockError):
    """Two folds of the same log disagree."""

    code = "digest_mismatch"
    exit_code = 7


# Services


class ReadBehind(PenstockError):
    """The read model has not folded the wanted position yet."""

    code = "read_behind"
    status = 503


class ReadModelUnavailable(PenstockError):
    """No projection process answers for this partition."""

    code = "read_model_unavailable"
    status = 503


class NotReady(PenstockError):
    """The service runs, but cannot do its work yet."""

    code = "not_ready"
    status = 503


class ServerUnreachable(PenstockError):
    """The Penstock server does not answer."""

    code = "server_unreachable"
    status = 503
    exit_code = 6


class SettingsInvalid(PenstockError):
    """A setting is missing or not allowed."""

    code = "settings_invalid"
    exit_code = 2


class DiskFailed(PenstockError):
    """The disk did not take what was to be written, or does not give what stands on it."""

    code = "disk_failed"
    status = 503


class StoreLocked(PenstockError):
    """The data folder is in use by another process."""

    code = "store_locked"
    exit_code = 3


# Workers


class LeaseLost(PenstockError):
    """The lease is no longer held: another attempt may be running."""

    code = "lease_lost"
    status = 409
