"""A load of single enqueues over keep-alive connections, from a process of its own.

    python benchmarks/http_load.py HOST:PORT one SECONDS IN_FLIGHT
    python benchmarks/http_load.py HOST:PORT pace PER_SECOND SECONDS LANES

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
    """One request after the other; an answer other than 201 ends the load."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._head = (
            f"POST /api/v1/jobs HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()

    async def open(self) -> Connection:
        host, port = self._address.split(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        return self

    async def post(self, body: bytes) -> None:
        self._writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(
            int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")
        )
        answer = await self._reader.readexactly(length)
        if int(lines[0].split(b" ")[1]) != 201:
            raise RuntimeError(f"{lines[0]!r} {answer[:500]!r}")

    def close(self) -> None:
        self._writer.close()


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, by the nearest rank; 0 when there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def one_by_one(address: str, seconds: float, in_flight: int) -> dict[str, float]:
    """So many connections, each with one request on its way at any time."""
    body = json.dumps({"type": "noop"}).encode()
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds
    times_ms: list[float] = []
    early = 0

    async def lane() -> None:
        nonlocal early
        connection = await Connection(address).open()
        while (started := time.perf_counter()) < end:
            await connection.post(body)
            if started >= begin:
                times_ms.append((time.perf_counter() - started) * 1_000)
            else:
                early += 1
        connection.close()

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    times_ms.sort()
    found = {"sent": len(times_ms) + early, "jobs": len(times_ms), "per_s": len(times_ms) / seconds}
    return found | {f"p{share}_ms": percentile(times_ms, share / 100) for share in (50, 95, 99)}


async def at_pace(address: str, per_s: float, seconds: float, lanes: int) -> dict[str, float]:
    """On a schedule that the lanes share; one that is late sends at once."""
    connections = await asyncio.gather(*(Connection(address).open() for _ in range(lanes)))
    step = lanes / per_s
    began = time.perf_counter()

    async def lane(number: int) -> int:
        sent = 0
        for turn in range(max(1, int(seconds / step + 0.5))):
            await asyncio.sleep(max(0.0, began + step * (number / lanes + turn) - time.perf_counter()))
            if time.perf_counter() > began + seconds:
                break
            job = {"type": "since", "payload": {"sent_ns": time.time_ns()}}
            await connections[number].post(json.dumps(job).encode())
            sent += 1
        connections[number].close()
        return sent

    jobs = sum(await asyncio.gather(*(lane(number) for number in range(lanes))))
    return {"jobs": jobs, "seconds": time.perf_counter() - began}


def main(arguments: Sequence[str]) -> None:
    import uvloop

    address, task, *rest = arguments
    if task == "one":
        found = uvloop.run(one_by_one(address, float(rest[0]), int(rest[1])))
    else:
        found = uvloop.run(at_pace(address, float(rest[0]), float(rest[1]), int(rest[2])))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
