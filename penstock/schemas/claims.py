"""Bodies too large for the log: they lie in a store of objects, and the line has a claim check in their place.

A claim stands where the payload or the result would::

    {"$claim": {"sha256": "9f86d0…", "size_bytes": 1048576}}

It is as much a part of the line as any body: the fold keeps it, history shows it, digests count it. Where the body lies
follows from the job that it belongs to and from its hash (:func:`claim_key`), so a claim can name nothing of another
job or tenant, and what is read is compared with what was written.
"""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from typing import Annotated, cast

import msgspec
from msgspec import Meta, Raw, Struct

from penstock.schemas.limits import MAX_CLAIM_BYTES

_FIELD = b'"$claim"'
_LONGEST_BYTES = 256
_SEGMENT = str.maketrans({":": "+", "~": "="})
_JOB = str.maketrans({"+": ":", "=": "~"})
_PREFIX = "job-"


class Claim(Struct, frozen=True, forbid_unknown_fields=True):
    """What a body that lies elsewhere must be. ``sha256`` is in hexadecimal, of the JSON as it was written."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size_bytes: Annotated[int, Meta(ge=0, le=MAX_CLAIM_BYTES)]


class _Body(Struct, frozen=True, forbid_unknown_fields=True, rename={"claim": "$claim"}):
    claim: Claim


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


def claim_of(body: bytes | Raw) -> Claim | None:
    """The claim that stands for a body; None where the body itself is there."""
    raw = bytes(cast("bytes", body))
    if len(raw) > _LONGEST_BYTES or _FIELD not in raw:
        return None
    try:
        return _decode(raw).claim
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def body_of(claim: Claim) -> bytes:
    """What stands on the line."""
    return _encode(_Body(claim))


def claim_key(tenant: str, job: str, sha256: str) -> str:
    """Key of the object: ``<tenant>/job-<job>/<sha256>``, with ``+`` for ``:`` and ``=`` for ``~`` of the job's id."""
    return f"{_folder(tenant, job)}/{sha256}"


def output_key(tenant: str, job: str, attempt: int, fence: int, number: int) -> str:
    """Key of a part of what an attempt logged: parts sort by holder, then by number."""
    return f"{output_prefix(tenant, job, attempt)}/{fence:020d}-{number:06d}.ndjson"


def output_prefix(tenant: str, job: str, attempt: int) -> str:
    """What the keys of all parts of an attempt's output begin with."""
    return f"{_folder(tenant, job)}/attempt-{attempt}"


def _folder(tenant: str, job: str) -> str:
    return f"{tenant}/{_PREFIX}{job.translate(_SEGMENT)}"


_JOBS = "/api/v1/jobs"


def payload_url(job: str) -> str:
    """Address at which the API gives a job's payload, wherever that lies."""
    return f"{_JOBS}/{job}/payload"


def result_url(job: str) -> str:
    """As :func:`payload_url`, of the result."""
    return f"{_JOBS}/{job}/result"


def claimant_of(key: str) -> tuple[str, str] | None:
    """Tenant and job of an object; None where it was not named by :func:`claim_key` or :func:`output_key`."""
    parts = key.split("/")
    if len(parts) not in (3, 4) or not parts[1].startswith(_PREFIX):
        return None
    return parts[0], parts[1].removeprefix(_PREFIX).translate(_JOB)
