"""The log as a server tells of it: its audit export, and how far its partitions are."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.client.calls import API, Call
from penstock.schemas.errors import PenstockError
from penstock.schemas.position import Position
from penstock.state.audit import AuditHeader, AuditLine

if TYPE_CHECKING:
    from penstock.client.http import Client

ExportedLine = tuple[Position, int, bytes]
"""Position, record time in Unix ms, the line as it stands on the log."""

_line = msgspec.json.Decoder(AuditLine).decode
_header = msgspec.json.Decoder(AuditHeader).decode


class ExportCut(PenstockError):
    """The export ended before its last line."""


def export_call(**params: int | str | None) -> Call:
    """The call for an audit export; see the API for its parameters."""
    given = tuple((name.rstrip("_"), str(value)) for name, value in params.items() if value not in (None, ""))
    return Call("GET", f"{API}/audit/export", given)


def exported_lines(
    client: Client, partition: int, start: int, stop: int | None = None
) -> Iterator[ExportedLine]:
    """Lines of a partition from offset ``start`` to its end, or to below ``stop``."""
    ended = False
    for data in client.stream_lines(export_call(partition=partition, from_=start, to=stop)):
        if data.startswith(b'{"audit"'):
            ended = data.startswith(b'{"audit":"end"')
        else:
            yield decode_exported(data)
    if not ended:
        raise ExportCut


def decode_exported(text: bytes) -> ExportedLine:
    """What a line of an export says; not its first or last one."""
    line = _line(text)
    data = (
        b64decode(line.event_base64)
        if line.event is None and line.event_base64
        else (line.event or "").encode()
    )
    return Position(line.partition, line.offset, line.line), line.time, data


def exported_header(text: bytes) -> bytes | None:
    """Where the lines of a copied record stood before, as its first line in an export tells."""
    copied = _line(text).copied if b'"copied":"' in text else None
    return None if copied is None else b64decode(copied)


def partition_start(client: Client, partition: int) -> int:
    """Offset of the first record that the log still has."""
    with closing(client.stream_lines(export_call(partition=partition, to=0))) as lines:
        return _header(next(lines)).ranges[str(partition)][0]


def partition_statuses(client: Client) -> list[dict[str, Any]]:
    """How far each partition is folded, with its digests."""
    return client.resource("partitions")["items"]


def partition_ends(client: Client) -> dict[int, int]:
    """The log's end in each partition, as last seen by the read model."""
    return {int(status["partition"]): int(status["end_offset"]) for status in partition_statuses(client)}
