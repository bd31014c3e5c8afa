"""How large a record may be, measured alike by every log."""

from __future__ import annotations

from penstock.log.port import Headers
from penstock.schemas.errors import RecordTooLarge


def record_bytes(value: bytes, key: bytes | None, headers: Headers) -> int:
    """Bytes that count against a topic's ``max_record_bytes``: value, key and headers."""
    size = len(value) + (len(key) if key else 0)
    for name, content in headers:
        size += len(name) + len(content)
    return size


def check_size(max_record_bytes: int, topic: str, value: bytes, key: bytes | None, headers: Headers) -> None:
    """Raise RecordTooLarge when the record is beyond what its topic takes."""
    size = record_bytes(value, key, headers)
    if size > max_record_bytes:
        raise RecordTooLarge(
            f"A record of {size} bytes is too large for topic {topic!r}, which takes {max_record_bytes}.",
            topic=topic, size_bytes=size, max_bytes=max_record_bytes,
        )  # fmt: skip
