"""`make bench`: what Penstock does on this machine, on the embedded log and on a real Kafka broker.

Every number is measured from outside, on processes started as users start them. `QUICK=1` takes a tenth of the jobs;
`ONLY=drain,latency,rest,dev` takes some of the measurements.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import httpx  # noqa: E402 - in one block with the others

from penstock.client.http import Client  # noqa: E402 - in one block with the others
from tests.acceptance.processes import Stack, free_port, http, wait_for  # noqa: E402 - found by the line above
from tests.kafka_broker import Broker  # noqa: E402 - as above
from tests.kafka_jars import KAFKA_VERSION  # noqa: E402 - as above

TASKS = HERE / "tasks.py"
QUICK = os.environ.get("QUICK", "") not in ("", "0")
KAFKA_JOBS = 10_000 if QUICK else 100_000
DEV_JOBS = 4_000 if QUICK else 40_000
LATENCY_JOBS = 60 if QUICK else 300
WARM_UP_JOBS = 100
"""Not counted: a broker that has just started still compiles itself."""
IDLE_S = 0.05
REST_S = 3 if QUICK else 10
CONNECTIONS = 32
CONCURRENCY = 200
PARTITIONS = 16
BULK_JOBS = 10_000
PATIENCE_S = 300


class Row(NamedTuple):
    """A line of the table. ``goal`` is what was aimed for, where something was."""

    what: str
    found: str
    goal: str = ""


def counted(server: str, job_type: str, state: str) -> int:
    """Jobs of a type in a state, by the read model."""
    rows = http("GET", f"{server}/api/v1/counts").json["rows"]
    return sum(row["jobs"] for row in rows if (row["type"], row["state"]) == (job_type, state))


def enqueue_many(server: str, jobs: int) -> float:
    """Put no-op jobs in by bulk calls; returns how many a second."""
    body = [{"type": "noop"}] * min(BULK_JOBS, jobs)
    began = time.perf_counter()
    for _ in range(0, jobs, BULK_JOBS):
        answer = http("POST", f"{server}/api/v1/jobs/bulk", body, timeout_s=120).json
        assert answer["accepted"] == len(body), answer
    per_s = jobs / (time.perf_counter() - began)
    wait_for("the read model has them all", lambda: counted(server, "noop", "ready") == jobs, PATIENCE_S)
    return per_s


def drain(server: str, jobs: int, start: Callable[[], object]) -> float:
    """Start what works, and return jobs a second from its first outcome until the read model shows the last."""
    start()
    done = wait_for("work has begun", lambda: counted(server, "noop", "succeeded"), PATIENCE_S, 0.01)
    began = time.perf_counter()
    wait_for("all is done", lambda: counted(server, "noop", "succeeded") == jobs, PATIENCE_S, 0.05)
    return (jobs - done) / (time.perf_counter() - began)


def rest(server: str, where: str) -> Row:
    """Single enqueues from another process."""
    host, port = server.removeprefix("http://").split(":")
    command = [sys.executable, str(HERE / "http_load.py"), host, port, str(CONNECTIONS), str(REST_S), "load"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=REST_S + 60)
    found = json.loads(done.stdout)
    failed = {status: count for status, count in found["statuses"].items() if status != "201"}
    text = f"{found['per_s']:,.0f}/s, p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms"
    return Row(
        f"REST enqueue one by one, {CONNECTIONS} connections, {where}",
        f"{text}, failed: {failed}" if failed else text,
        "1,500/s, p99 50 ms",
    )


def latency(server: str, where: str) -> Row:
    """From before a job is sent to its handler's first line, one job at a time, with nothing else going on."""
    with Client(server) as client, httpx.Client(base_url=server) as raw:
        found: list[float] = []
        for _ in range(WARM_UP_JOBS + LATENCY_JOBS):
            sent = raw.post("/api/v1/jobs", json={"type": "since", "payload": {"sent_ns": time.time_ns()}})
            # Only then is it asked for: whoever polls meanwhile competes with what is measured.
            time.sleep(IDLE_S)
            found.append(client.wait(sent.json()["id"])["result"] / 1e6)
    found = sorted(found[WARM_UP_JOBS:])
    p99_ms = found[int(0.99 * len(found))]
    return Row(
        f"Enqueue over REST until the handler starts, idle, {where}",
        f"median {statistics.median(found):.1f} ms, p99 {p99_ms:.1f} ms",
        "median 10 ms",
    )


@contextmanager
def on_kafka(bootstrap: str) -> Iterator[tuple[Stack, str]]:
    """All roles on a fresh namespace; the worker is not started."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, Stack(Path(folder)) as stack:
        namespace = f"bench-{uuid.uuid4().hex[:8]}"
        server = stack.add_kafka_roles(
            bootstrap, namespace, partitions=PARTITIONS, orchestrators=1, app=TASKS
        )
        stack["worker"].environment["PENSTOCK_CONCURRENCY"] = str(CONCURRENCY)
        for name, role in stack.roles.items():
            if name != "worker":
                role.start()
        for name, role in stack.roles.items():
            if name != "worker":
                role.wait_ready()
        yield stack, server


def kafka_rows(only: set[str]) -> Iterator[Row]:
    """Measurements on Kafka: orchestrator, projection, API and worker as processes of their own."""
    with Broker(heap_mb=1_024) as broker:
        if "rest" in only:
            with on_kafka(broker.bootstrap) as (_, server):
                yield rest(server, "on Kafka")
        if "drain" in only:
            with on_kafka(broker.bootstrap) as (stack, server):
                per_s = enqueue_many(server, KAFKA_JOBS)
                yield Row(f"Enqueue {KAFKA_JOBS:,} jobs in bulk, on Kafka", f"{per_s:,.0f}/s")
                per_s = drain(server, KAFKA_JOBS, stack["worker"].start)
                yield Row(
                    f"Drain {KAFKA_JOBS:,} no-op jobs on Kafka, until the read model shows the last",
                    f"{per_s:,.0f}/s",
                    "8,000/s",
                )
        # Last, for by now the broker is warm.
        if "latency" in only:
            with on_kafka(broker.bootstrap) as (stack, server):
                stack["worker"].start().wait_ready()
                yield latency(server, "on Kafka")


@contextmanager
def on_dev() -> Iterator[tuple[Stack, str]]:
    """`penstock dev` on a fresh folder, without handlers; not started. A second role, `busy`, is the same with them."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, Stack(Path(folder)) as stack:
        port = free_port()
        server = f"http://127.0.0.1:{port}"
        command = ("dev", "--data", "data", "--port", str(port))
        stack.add("dev", command, ready_url=f"{server}/readyz")
        working = (*command, "--app", str(TASKS), "--concurrency", str(CONCURRENCY))
        stack.add("busy", working, ready_url=f"{server}/readyz")
        yield stack, server


def dev_rows(only: set[str]) -> Iterator[Row]:
    """Measurements on `penstock dev`: everything in one process, each write synced to the disk."""
    if "rest" in only:
        with on_dev() as (stack, server):
            stack["dev"].start().wait_ready()
            yield rest(server, "penstock dev")
    if "latency" in only:
        with on_dev() as (stack, server):
            stack["busy"].start().wait_ready()
            yield latency(server, "penstock dev")
    if "dev" in only:
        with on_dev() as (stack, server):
            stack["dev"].start().wait_ready()
            per_s = enqueue_many(server, DEV_JOBS)
            yield Row(f"Enqueue {DEV_JOBS:,} jobs in bulk, penstock dev", f"{per_s:,.0f}/s")
            stack["dev"].stop()
            per_s = drain(server, DEV_JOBS, lambda: stack["busy"].start().wait_ready())
            text = f"Drain {DEV_JOBS:,} no-op jobs, penstock dev with handlers inside"
            yield Row(text, f"{per_s:,.0f}/s", "4,000/s")


def machine() -> str:
    """What this was measured on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({cpu}), Python {platform.python_version()}, Kafka {KAFKA_VERSION}, all on one machine"


def main() -> int:
    """Measure and print a table."""
    only = set(filter(None, os.environ.get("ONLY", "").split(","))) or {"drain", "latency", "rest", "dev"}
    print(machine(), flush=True)
    rows: list[Row] = []
    sources: list[Callable[[set[str]], Iterator[Row]]] = [dev_rows]
    if only & {"drain", "latency", "rest"}:
        sources.append(kafka_rows)
    for source in sources:
        for row in source(only):
            rows.append(row)
            print(f"  {row.what}: {row.found}", flush=True)
    print()
    _print_table(rows)
    return 0


def _print_table(rows: list[Row]) -> None:
    heads: Any = Row("", "measured", "aimed for")
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(3)]
    for row in [heads, Row(*("-" * width for width in widths)), *rows]:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")


if __name__ == "__main__":
    sys.exit(main())
