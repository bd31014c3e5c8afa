"""Logs to be archived, in all shapes of records."""

from __future__ import annotations

from typing import Any

from penstock.log.archive_log import ArchivedLog
from penstock.log.archiver import Archiver
from penstock.log.namespace import Namespace
from penstock.log.port import Log, Record
from tests.log.reading import read


def worker_of(both: ArchivedLog, namespace: Namespace, **options: Any) -> Archiver:
    return Archiver(both, namespace, **options)


async def fill(log: Log, topic: str, count: int = 20, partition: int = 0) -> list[Record]:
    """Records of all shapes."""
    for number in range(count):
        value = f'{{"type":"Enqueued","job":"j{number % 7}","n":{number}}}\n'.encode() * (number % 3)
        key = (None, b"", b"home")[number % 3]
        headers = (("origin", bytes([number, 255])), ("leer", b"")) if number % 4 == 0 else ()
        await log.append(topic, partition, value, key=key, headers=headers)
    return await read(log, {(topic, partition): 0})
