"""What each of the Python peers is asked for on the command line, once for blocking clients and once for asyncio's.

    python -m benchmarks.peers.python.<peer> version
    python -m benchmarks.peers.python.<peer> bulk JOBS KIND                 enqueue as fast as it goes
    python -m benchmarks.peers.python.<peer> one SECONDS IN_FLIGHT          enqueue one by one
    python -m benchmarks.peers.python.<peer> pace PER_SECOND SECONDS LANES  enqueue at a rate

What was measured is printed as one JSON object. Workers are started by each peer's own command.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

WARM_UP_S = 1.0
PAYLOAD = "x" * 10_000
FAILING = 10
"""Every so manieth `flaky` job fails the first time that it runs."""


class FailsOnce(Exception):
    """What a `flaky` handler raises."""


def arguments_of(kind: str, number: int = 0, sent_ns: int = 0) -> tuple[Any, ...]:
    """Of a job's handler: by kind, its number within a bulk, and when it was sent."""
    return {"payload": (PAYLOAD,), "flaky": (number,), "since": (sent_ns,)}.get(kind, ())


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, by the nearest rank; 0 when there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summary(times_ms: list[float], sent: int, seconds: float) -> dict[str, float]:
    """Of single enqueues."""
    ordered = sorted(times_ms)
    found: dict[str, float] = {"sent": sent, "jobs": len(ordered), "per_s": len(ordered) / seconds}
    return found | {f"p{share}_ms": percentile(ordered, share / 100) for share in (50, 95, 99)}


class Blocking:
    """A client whose calls block: one thread a lane."""

    def __init__(self, bulk: Callable[[int, str], object], send: Callable[[str, int], object]) -> None:
        self._bulk = bulk
        self._send = send

    def bulk(self, jobs: int, kind: str) -> None:
        self._bulk(jobs, kind)

    def one(self, seconds: float, in_flight: int) -> dict[str, float]:
        begin = time.perf_counter() + WARM_UP_S
        end = begin + seconds
        times_ms: list[float] = []
        early: list[int] = []

        def lane(_: int) -> None:
            mine: list[float] = []
            warming = 0
            while (started := time.perf_counter()) < end:
                self._send("noop", 0)
                if started >= begin:
                    mine.append((time.perf_counter() - started) * 1_000)
                else:
                    warming += 1
            times_ms.extend(mine)
            early.append(warming)

        _in_threads(in_flight, lane)
        return summary(times_ms, len(times_ms) + sum(early), seconds)

    def pace(self, per_s: float, seconds: float, lanes: int) -> int:
        began = time.perf_counter()
        sent: list[int] = []

        def lane(number: int) -> None:
            mine = 0
            for due in due_times(per_s, seconds, lanes, number):
                time.sleep(max(0.0, began + due - time.perf_counter()))
                if time.perf_counter() > began + seconds:
                    break
                self._send("since", time.time_ns())
                mine += 1
            sent.append(mine)

        _in_threads(lanes, lane)
        return sum(sent)


class Awaited:
    """A client of asyncio: one task a lane. ``opened`` prepares it, ``closed`` ends it."""

    def __init__(
        self,
        bulk: Callable[[int, str], Awaitable[object]],
        send: Callable[[str, int], Awaitable[object]],
        opened: Callable[[], Awaitable[object]],
        closed: Callable[[], Awaitable[object]],
    ) -> None:
        self._bulk = bulk
        self._send = send
        self._opened = opened
        self._closed = closed

    def _run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        import uvloop

        async def around() -> Any:
            await self._opened()
            try:
                return await work()
            finally:
                await self._closed()

        return uvloop.run(around())

    def bulk(self, jobs: int, kind: str) -> float:
        async def work() -> float:
            began = time.perf_counter()
            await self._bulk(jobs, kind)
            return time.perf_counter() - began

        return self._run(work)

    def one(self, seconds: float, in_flight: int) -> dict[str, float]:
        async def work() -> dict[str, float]:
            begin = time.perf_counter() + WARM_UP_S
            end = begin + seconds
            times_ms: list[float] = []
            early = 0

            async def lane() -> None:
                nonlocal early
                while (started := time.perf_counter()) < end:
                    await self._send("noop", 0)
                    if started >= begin:
                        times_ms.append((time.perf_counter() - started) * 1_000)
                    else:
                        early += 1

            await asyncio.gather(*(lane() for _ in range(in_flight)))
            return summary(times_ms, len(times_ms) + early, seconds)

        return self._run(work)

    def pace(self, per_s: float, seconds: float, lanes: int) -> int:
        async def work() -> int:
            began = time.perf_counter()

            async def lane(number: int) -> int:
                mine = 0
                for due in due_times(per_s, seconds, lanes, number):
                    await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                    if time.perf_counter() > began + seconds:
                        break
                    await self._send("since", time.time_ns())
                    mine += 1
                return mine

            return sum(await asyncio.gather(*(lane(number) for number in range(lanes))))

        return self._run(work)


def due_times(per_s: float, seconds: float, lanes: int, lane: int) -> Sequence[float]:
    """When a lane sends, in seconds from the beginning: lanes take turns, and one that is late sends at once."""
    step = lanes / per_s
    return [step * lane / lanes + step * number for number in range(max(1, int(seconds / step + 0.5)))]


def _in_threads(count: int, run: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as error:  # noqa: BLE001 - told to the main thread, which raises it
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def main(version: Callable[[], str], client: Blocking | Awaited) -> None:
    """Do what the command line says."""
    task, *rest = sys.argv[1:]
    if task == "version":
        found: dict[str, Any] = {"version": version()}
    elif task == "bulk":
        began = time.perf_counter()
        inside_s = client.bulk(int(rest[0]), rest[1])
        found = {"jobs": int(rest[0]), "seconds": inside_s or time.perf_counter() - began}
    elif task == "one":
        found = dict(client.one(float(rest[0]), int(rest[1])))
    elif task == "pace":
        began = time.perf_counter()
        jobs = client.pace(float(rest[0]), float(rest[1]), int(rest[2]))
        found = {"jobs": jobs, "seconds": time.perf_counter() - began}
    else:
        raise SystemExit(f"no task {task!r}")
    print(json.dumps(found))
