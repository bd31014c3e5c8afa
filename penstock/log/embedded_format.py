"""Bytes of the embedded log: keys that sort by topic, partition and offset; values that carry their own checksum.

Value: CRC-32 of the key and of all that follows (4 bytes), log time in Unix ms (8), length of the key or -1 (4), number
of headers (2), then key, headers (length of name 2, of content 4, both) and the record's value to the end.
"""

from __future__ import annotations

import struct
import zlib

from penstock.log.port import Headers, Record
from penstock.schemas.errors import LogCorrupt

FORMAT_VERSION = 1
BLOCK_SHIFT = 8
"""Records of 2**8 offsets share one entry of the time index: the latest time among them."""

_KEY = struct.Struct(">IIQ")
_PREFIX = struct.Struct(">II")
_TIME = struct.Struct(">q")
_CRC = struct.Struct(">I")
_HEAD = struct.Struct(">qiH")
_HEADER = struct.Struct(">HI")

record_key = _KEY.pack
"""(topic number, partition, offset) → key. The time index uses it with the block's number for the offset."""
pack_i64 = _TIME.pack


def unpack_i64(content: bytes) -> int:
    return int(_TIME.unpack(content)[0])


def partition_range(topic_number: int, partition: int) -> tuple[bytes, bytes]:
    """First key of a partition, and the first key behind it."""
    return _PREFIX.pack(topic_number, partition), _PREFIX.pack(topic_number, partition + 1)


def offset_of(key: bytes) -> int:
    return int(_KEY.unpack(key)[2])


def encode(store_key: bytes, time_ms: int, key: bytes | None, value: bytes, headers: Headers) -> bytes:
    """The stored value of a record."""
    parts = [_HEAD.pack(time_ms, -1 if key is None else len(key), len(headers)), key or b""]
    for name, content in headers:
        encoded = name.encode()
        parts += (_HEADER.pack(len(encoded), len(content)), encoded, content)
    parts.append(value)
    body = b"".join(parts)
    return _CRC.pack(zlib.crc32(body, zlib.crc32(store_key))) + body


def decode(topic: str, partition: int, store_key: bytes, stored: bytes) -> Record:
    """The record of a stored pair.

    Raises:
        LogCorrupt: the checksum does not match.
    """
    offset = offset_of(store_key)
    view = memoryview(stored)[4:]
    if len(stored) < 18 or zlib.crc32(view, zlib.crc32(store_key)) != _CRC.unpack_from(stored)[0]:
        raise LogCorrupt(
            f"The record at {topic}-{partition} offset {offset} is damaged: its checksum does not match.",
            topic=topic, partition=partition, offset=offset,
        )  # fmt: skip
    time_ms, key_length, header_count = _HEAD.unpack_from(view)
    at = _HEAD.size + 4
    key: bytes | None = None
    if key_length >= 0:
        key = stored[at : at + key_length]
        at += key_length
    headers: Headers = ()
    if header_count:
        headers, at = _decode_headers(stored, at, header_count)
    return Record(topic, partition, offset, time_ms, True, key, stored[at:], headers)


def time_of(stored: bytes) -> int:
    """Log time of a stored record, without decoding the rest."""
    return int(_TIME.unpack_from(stored, 4)[0])


def _decode_headers(stored: bytes, at: int, count: int) -> tuple[Headers, int]:
    headers: list[tuple[str, bytes]] = []
    for _ in range(count):
        name_length, content_length = _HEADER.unpack_from(stored, at)
        at += _HEADER.size
        name = stored[at : at + name_length].decode()
        at += name_length
        headers.append((name, stored[at : at + content_length]))
        at += content_length
    return tuple(headers), at
