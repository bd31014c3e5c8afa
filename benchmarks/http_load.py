"""A load of single enqueues over keep-alive connections, from a process of its own.

    python benchmarks/http_load.py HOST PORT CONNECTIONS SECONDS JOB_TYPE

Bare sockets and a parser that knows no more of HTTP than the server's answers need: a client library would be what is
measured. Prints one JSON object; latencies are from the request's first byte to the answer's last, in ms.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

WARM_UP_S = 1.0


class Connection:
    """One request after the other until the time is over."""

    def __init__(self, host: str, port: int, job_type: str) -> None:
        self._host = host
        self._port = port
        self._body = json.dumps({"type": job_type, "payload": {"width": 200, "height": 100}}).encode()
        self.times_ms: list[float] = []
        self.statuses: dict[int, int] = {}

    async def run(self, begin: float, end: float) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = (
            f"POST /api/v1/jobs HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\n\r\n"
        )
        request = head.encode() + self._body
        while (started := time.perf_counter()) < end:
            writer.write(request)
            status = await _answer(reader)
            finished = time.perf_counter()
            if started >= begin:
                self.times_ms.append((finished - started) * 1_000)
                self.statuses[status] = self.statuses.get(status, 0) + 1
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(lines[0].split(b" ")[1])


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, by the nearest rank."""
    return values[min(len(values) - 1, int(share * len(values)))]


async def load(host: str, port: int, connections: int, seconds: float, job_type: str) -> dict[str, object]:
    """Run the load and sum it up."""
    begin = time.perf_counter() + WARM_UP_S
    made = [Connection(host, port, job_type) for _ in range(connections)]
    await asyncio.gather(*(connection.run(begin, begin + seconds) for connection in made))
    times_ms = sorted(time_ms for connection in made for time_ms in connection.times_ms)
    statuses: dict[int, int] = {}
    for connection in made:
        for status, count in connection.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "requests": len(times_ms),
        "per_s": len(times_ms) / seconds,
        "p50_ms": percentile(times_ms, 0.5),
        "p99_ms": percentile(times_ms, 0.99),
        "max_ms": times_ms[-1],
        "statuses": statuses,
    }


def main(arguments: Sequence[str]) -> None:
    host, port, connections, seconds, job_type = arguments
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    print(json.dumps(run(load(host, int(port), int(connections), float(seconds), job_type))))


if __name__ == "__main__":
    main(sys.argv[1:])
