"""Rows that the read model keeps beside the fold's: families, keys and encodings.

========== ============================================== ============================================================
family     key                                            value
========== ============================================== ============================================================
history    job key, NUL, position of the first line       accepted lines of one commit: (position, time, line)
refused    job key, NUL                                   how many, and the positions of the last 20
refused    job key, NUL, position                         one refused line: (time, outcome, reason, line)
errors     job key                                        the newest failures
index      group number, created_at, job id               nothing
counters   group number                                   group's name and how many jobs it has
quarantine position                                       time, reason, message, SHA-256, size, first bytes
forgotten  time, position of a ``Forgotten``              job key
========== ============================================== ============================================================

Numbers in keys are big-endian: 4 bytes for groups, 8 for times and packed positions. No job key contains NUL.
"""

from __future__ import annotations

import msgspec

from penstock.projections.views import ErrorRow

HISTORY, REFUSED, ERRORS, INDEX, COUNTERS, QUARANTINE, FORGOTTEN = (
    "history",
    "refused",
    "errors",
    "index",
    "counters",
    "quarantine",
    "forgotten",
)
FAMILIES = (HISTORY, REFUSED, ERRORS, INDEX, COUNTERS, QUARANTINE, FORGOTTEN)
LAYOUT = 2
"""Version of these rows; a store with another is folded anew."""

KEPT_REFUSED = 20
"""Refused lines kept of a job."""

Line = tuple[int, int, bytes]
"""An accepted line: packed position, time in Unix ms, the line as written."""


class RefusedRow(msgspec.Struct, frozen=True, array_like=True):
    """A line that had no effect."""

    time_ms: int
    outcome: str
    reason: str
    line: bytes


class RefusedSummary(msgspec.Struct, array_like=True):
    """How many lines of a job were refused, and where the last of them stand, oldest first."""

    count: int = 0
    positions: list[int] = []


class QuarantineRow(msgspec.Struct, frozen=True, array_like=True):
    """A line that could not be decoded."""

    time_ms: int
    reason: str
    message: str
    sha256: bytes
    size_bytes: int
    head: bytes


encode = msgspec.msgpack.Encoder().encode
decode_lines = msgspec.msgpack.Decoder(list[Line]).decode
decode_refused = msgspec.msgpack.Decoder(RefusedRow).decode
decode_summary = msgspec.msgpack.Decoder(RefusedSummary).decode
decode_errors = msgspec.msgpack.Decoder(list[ErrorRow]).decode
decode_quarantine = msgspec.msgpack.Decoder(QuarantineRow).decode


def job_prefix(key: str) -> bytes:
    return key.encode() + b"\x00"


def after_prefix(prefix: bytes) -> bytes:
    """The first key beyond all that begin with ``prefix``, which ends in NUL."""
    return prefix[:-1] + b"\x01"


def number(value: int) -> bytes:
    """A time or packed position inside a key."""
    return value.to_bytes(8, "big")


def index_key(group: bytes, created_at_ms: int, job_id: str) -> bytes:
    return group + created_at_ms.to_bytes(8, "big") + job_id.encode()


def next_group(prefix: bytes) -> bytes:
    """The first key beyond a group's index rows."""
    return (int.from_bytes(prefix, "big") + 1).to_bytes(4, "big")


def split_index_key(key: bytes) -> tuple[int, str]:
    """Creation time and id of the job behind an index row."""
    return int.from_bytes(key[4:12], "big"), key[12:].decode()
