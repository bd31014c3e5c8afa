"""The rows that a fold keeps: their keys, their values as bytes, and what each adds to the state digest.

===============  =====================================================================================
key              value
===============  =====================================================================================
``p``            :class:`PartitionState`, the partition as a whole
``j`` job key    :class:`~penstock.core.job.Job`
``m`` position   a line, as written, that belongs to another partition and waits to be forwarded
``q`` position   :class:`Quarantined`, what is known of a line that could not be decoded
``u`` tenant/key :class:`~penstock.core.unique.KeyRow`, who holds a unique key
===============  =====================================================================================

Positions are packed, eight bytes, big-endian, so that rows stand in log order.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

from penstock.core.job_state import GroupedJob, Job, KeyedJob, SerialJob

FOLD_VERSION = 2
"""Version of the rows' encoding. A store written by another is thrown away and folded anew."""

STATE_KEY = b"p"
DIGEST_MODULUS = 1 << 256


class PartitionState(msgspec.Struct, array_like=True):
    """What the fold knows of the partition as a whole."""

    epoch: int = -1
    leader: str = ""
    incarnation: str = ""
    rules: int = 1
    time_ms: int = 0
    """Time of the last record that the log itself stamped."""
    config_position: int = -1
    origins: dict[int, int] = {}
    """Highest forwarded position by source partition."""
    accepted: int = 0
    refused: int = 0
    unknown_jobs: int = 0
    quarantined: int = 0
    misrouted: int = 0
    generation: int = 0
    """Of the log, as the seal of a copy tells it; 0 on a log that is no copy."""
    copying: str = ""
    """Name of the copy that is being written into this partition."""
    copied: dict[int, int] = {}
    """Highest packed position that was copied, by partition of the source."""
    copied_generation: int = -1
    """Highest generation of a copied line."""
    sealed_at: int = -1
    """Packed position of the seal."""


class Quarantined(msgspec.Struct, array_like=True, frozen=True):
    """A line that could not be decoded: why, and the SHA-256 and size in bytes of what stood there."""

    reason: str
    sha256: bytes
    size_bytes: int


class Changes(msgspec.Struct):
    """Rows to write: None deletes. ``digest`` is the state digest once they are written."""

    rows: list[tuple[bytes, bytes | None]]
    digest: int


encode_row = msgspec.msgpack.Encoder().encode
_decode_job = msgspec.msgpack.Decoder(Job).decode
_HEAD_BYTES = 3
_decode_kinds = {
    b"\xdc" + len(kind.__struct_fields__).to_bytes(2, "big"): msgspec.msgpack.Decoder(kind).decode
    for kind in (KeyedJob, SerialJob, GroupedJob)
}
"""By what the rows of such jobs begin with: with how many fields they have."""


def decode_job_row(data: bytes) -> Job:
    return _decode_kinds.get(data[:_HEAD_BYTES], _decode_job)(data)


decode_state_row = msgspec.msgpack.Decoder(PartitionState).decode
decode_quarantined_row = msgspec.msgpack.Decoder(Quarantined).decode

Row = Job | PartitionState | Quarantined | bytes | None


def job_row_key(key: str) -> bytes:
    return b"j" + key.encode()


def position_row_key(prefix: bytes, position: int) -> bytes:
    return prefix + position.to_bytes(8, "big")


def row_digest(key: bytes, value: bytes) -> int:
    """A row's share of the state digest."""
    return int.from_bytes(sha256(len(key).to_bytes(4, "big") + key + value).digest(), "big")
