"""Rows that the read model keeps beside the fold's: families, keys and encodings.

========== ============================================== ============================================================
family     key                                            value
========== ============================================== ============================================================
history    job key, NUL, position of the first line       accepted lines of one commit, see :class:`Line`
refused    job key, NUL                                   how many, and the positions of the last 20
refused    job key, NUL, position                         one refused line: (time, outcome, reason, line)
errors     job key                                        the newest failures
index      group number, created_at, job id               nothing
marks      a mark, NUL, created_at, job id                nothing; see :mod:`penstock.projections.candidates`
counters   group number                                   group's name and how many jobs it has
quarantine position                                       time, reason, message, SHA-256, size, first bytes
forgotten  time, position of a ``Forgotten``              job key
rules      position of a ``RulesActivated``               the version that it activated
unindexed  next offset after a commit                     jobs whose texts it changed
unindexed  ``\\xff``                                       offset below which the text index has all
operated   operation id, NUL                              jobs by outcome
operated   ``\\xff``, time, operation id                  nothing; when it began here
operated   operation id, NUL, job id                      what became of the operation's wish about the job
========== ============================================== ============================================================

Numbers in keys are big-endian: 4 bytes for groups, 8 for times and packed positions. No job key contains NUL.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from penstock.projections.views import ErrorRow

HISTORY, REFUSED, ERRORS, INDEX, MARKS, COUNTERS, QUARANTINE, FORGOTTEN, OPERATED, ACTIVATED, UNINDEXED = (
    "history",
    "refused",
    "errors",
    "index",
    "marks",
    "counters",
    "quarantine",
    "forgotten",
    "operated",
    "rules",
    "unindexed",
)
FAMILIES = (
    HISTORY, REFUSED, ERRORS, INDEX, MARKS, COUNTERS, QUARANTINE, FORGOTTEN, OPERATED, ACTIVATED, UNINDEXED,
)  # fmt: skip
LAYOUT = 4
"""Version of these rows; a store with another is folded anew."""

KEPT_REFUSED = 20
"""Refused lines kept of a job."""


class Line(NamedTuple):
    """An accepted line: packed position, time in Unix ms, the line as written.

    Of a copied one also the ordinal and the version of the rules by which it was decided; stores that older versions
    folded lack them.
    """

    position: int
    time_ms: int
    data: bytes
    ordinal: int = -1
    rules: int = 0


LineRow = tuple[int, int, bytes] | tuple[int, int, bytes, int, int]
"""As it is written: most have nothing of a copy."""


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
decode_version = msgspec.msgpack.Decoder(int).decode
decode_quarantine = msgspec.msgpack.Decoder(QuarantineRow).decode


def job_prefix(key: str) -> bytes:
    return key.encode() + b"\x00"


def after_prefix(prefix: bytes) -> bytes:
    """The first key beyond all that begin with ``prefix``, which ends in NUL."""
    return prefix[:-1] + b"\x01"


def number(value: int) -> bytes:
    """A time or packed position inside a key."""
    return value.to_bytes(8, "big")


def index_key(prefix: bytes, created_at_ms: int, job_id: str) -> bytes:
    """Of a row of the index, where ``prefix`` is a group's number, or of the marks, where it is one."""
    return prefix + created_at_ms.to_bytes(8, "big") + job_id.encode()


def behind(prefix: bytes) -> bytes:
    """The first key beyond all index rows of a group or mark."""
    return (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")


def split_index_key(key: bytes, prefix_bytes: int) -> tuple[int, str]:
    """Creation time and id of the job behind an index row."""
    return int.from_bytes(key[prefix_bytes : prefix_bytes + 8], "big"), key[prefix_bytes + 8 :].decode()
