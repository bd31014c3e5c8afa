"""The log digest: a hash chain over raw records, which anybody with a copy of the log can compute and compare."""

from __future__ import annotations

from hashlib import sha256

FIRST_LINK = bytes(32)
"""The chain before any record."""


def next_link(previous: bytes, offset: int, value: bytes) -> bytes:
    """SHA-256 over the previous link, the record's offset (8 bytes, big-endian) and its value as on the log."""
    digest = sha256(previous)
    digest.update(offset.to_bytes(8, "big"))
    digest.update(value)
    return digest.digest()
