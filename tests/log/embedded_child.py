"""Appends to an embedded log for ever and prints each acknowledged record: run as a child process to be killed."""

from __future__ import annotations

import asyncio
import os
import sys

from penstock.log.embedded import EmbeddedLog
from penstock.log.port import TopicSpec


async def main(path: str, life: str) -> None:
    async with EmbeddedLog(path) as log:
        await log.ensure_topics([TopicSpec("jobs", 3)])

        async def write(writer: int) -> None:
            number = 0
            while True:
                body = f"{life}:{writer}:{number}:".encode()
                appended = await log.append("jobs", writer % 3, body + b"x" * (number * 37 % 5_000))
                os.write(1, b"%d %d %s\n" % (writer % 3, appended.offset, body))
                number += 1

        await asyncio.gather(*(write(writer) for writer in range(9)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
