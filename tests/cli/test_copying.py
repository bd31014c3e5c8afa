"""A log that is taken elsewhere: jobs in every state are found again there, and work goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.client.http import Client
from penstock.log.namespace import open_namespace
from penstock.log.opening import open_log
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import TopicMismatch
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Beat, encode_messages
from penstock.schemas.position import MAX_GENERATION, generation_of, parse
from penstock.schemas.topics import Topics
from tests.cli.conftest import Dev, Run, environment
from tests.cli.test_on_kafka import Roles
from tests.waiting import wait_for

BEFORE = """
import asyncio
from penstock import Context, RetryLater, task

@task
async def greet(name: str) -> str:
    return f"hello {name}"

@task
def broken() -> None:
    raise ValueError("no luck")

@task
def patient() -> None:
    raise RetryLater(3_600_000)

@task
async def linger(ctx: Context) -> None:
    ctx.progress(50, "half", checkpoint={"at": 5})
    while not ctx.cancelled:
        await asyncio.sleep(0.01)
"""
AFTER = """
from penstock import Context, task

@task
async def linger(ctx: Context) -> dict[str, object]:
    return {"fence": ctx.fence, "checkpoint": ctx.checkpoint}

@task
async def later(n: int) -> int:
    return n + 1
"""
WAITING = [f"later-{number}" for number in range(6)]
STRAY = "stray"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def plain(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without the places at which its lines stand."""
    return [{name: value for name, value in item.items() if name != "position"} for item in history]


class Source:
    """An embedded log whose process was killed in the middle of its work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = f"embedded:{folder / 'data'}"
        self.topics = Topics(partitions=4, work_partitions=4)
        (folder / "before.py").write_text(BEFORE)
        stray = ev.Enqueued(id="enq.stray", job=STRAY, job_type="greet", payload=ev.Raw(b'{"name":"stray"}'))
        # Not where it belongs: it is forwarded.
        self.append((partition_of(STRAY, 4) + 1) % 4, stray)
        dev = Dev(folder, "--app", "before")
        try:
            with Client(dev.server) as client:
                self._work(client)
        finally:
            dev.stop(signal.SIGKILL)
        self.append(
            partition_of(WAITING[0], 4),
            ev.CancelRequested(
                id="cancel", job=WAITING[0], of=self.cancelled_id, not_after=now_ms() + 60_000
            ),
        )

    def _work(self, client: Client) -> None:
        client.enqueue("greet", {"name": "you"}, id="greet")
        for job in ("broken", "patient", "linger"):
            client.enqueue(job, id=job, max_attempts=1 if job == "broken" else 5)
        for number, job in enumerate(WAITING):
            client.enqueue("later", {"n": number}, id=job)
        client.enqueue("later", {"n": 0}, id="tomorrow", delay_ms=86_400_000)
        for job, state in {
            "greet": "succeeded",
            "broken": "dead",
            "patient": "retrying",
            STRAY: "succeeded",
        }.items():
            wait_for(f"{job} is {state}", lambda job=job, state=state: client.get(job)["state"] == state)
        wait_for("it lingers", lambda: client.get("linger")["checkpoint"] == {"at": 5})
        wait_for("the dead are told", lambda: len(client.history("broken")) == 4)
        self.histories = {job: plain(client.history(job)) for job in ("greet", "broken", "patient", STRAY)}
        leased = next(item for item in client.history("linger") if item["type"] == "Leased")
        self.fence = parse(leased["position"]).packed
        self.cancelled_id = client.history(WAITING[0])[0].get("id") or WAITING[0]

    def append(self, partition: int, event: ev.Event) -> None:
        async def append() -> None:
            async with open_log(self.log) as log:
                await open_namespace(log, self.topics)
                await log.append(self.topics.jobs, partition, encode_line(event))

        asyncio.run(append())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("source"))


def check_states(shown: dict[str, Any]) -> None:
    assert shown["source"] == shown["copy"]
    assert shown["source"]["states"] == {
        "active": 1, "cancelled": 1, "dead": 1, "ready": 5, "retrying": 1, "scheduled": 1, "succeeded": 2,
    }  # fmt: skip
    assert (shown["sealed"], shown["generation"], shown["behind_records"]) == (True, 1, 0)


def check_work_goes_on(client: Client, source: Source, timeout_ms: int = 30_000) -> None:
    """A worker finishes what waited and what was running, and everything else is as it was."""
    for number, job in enumerate(WAITING[1:], 1):
        assert client.wait(job, timeout_ms)["result"] == number + 1
    result = client.wait("linger", timeout_ms)["result"]
    assert result["checkpoint"] == {"at": 5}
    assert int(result["fence"]) > source.fence
    assert generation_of(int(result["fence"])) == 1
    assert client.get("tomorrow")["state"] == "scheduled"
    cancelled = client.get(WAITING[0])
    assert (cancelled["state"], cancelled["attempt"]) == ("cancelled", 0)
    for job, history in source.histories.items():
        assert plain(client.history(job)) == history
    positions = [item["position"] for item in client.history("linger")]
    assert positions == sorted(positions, key=lambda text: parse(text).packed)
    new = client.enqueue("later", {"n": 41})
    assert client.wait(new["id"], timeout_ms)["result"] == 42


@pytest.mark.slow
def test_to_more_partitions(source: Source, run: Run, tmp_path: Path) -> None:
    copy = f"embedded:{tmp_path / 'data'}"
    # Nobody may use the copy before it is complete; a dry run makes nothing at all.
    dry = run("log", "copy", "--from", source.log, "--to", copy, "--partitions", "7", "--dry-run")
    assert (dry.code, "Nothing was written" in dry.out, (tmp_path / "data").exists()) == (0, True, False)
    copied = run("log", "copy", "--from", source.log, "--to", copy, "--partitions", "7", "--output", "json")
    assert copied.code == 0, copied.err
    check_states(copied.json)
    same = run("log", "compare", "--a", source.log, "--b", copy, "--output", "json")
    assert (same.code, same.json["same"], len(same.json["b"]["next_offsets"])) == (0, True, 7)
    again = run("log", "copy", "--from", source.log, "--to", copy, "--partitions", "7")
    assert (again.code, "can be used" in again.out) == (0, True)

    (tmp_path / "after.py").write_text(AFTER)
    (tmp_path / "penstock.toml").write_text("partitions = 7\n")
    dev = Dev(tmp_path, "--app", "after")
    try:
        with Client(dev.server) as client:
            check_work_goes_on(client, source)
            position = client.get("greet")["position"]
            assert parse(position).partition == partition_of("greet", 7)
            # What was copied can be inspected where it stands now, and the digests of all folders agree.
            shown = run("--server", dev.server, "log", "inspect", client.history("greet")[0]["position"])
            assert (shown.code, "Enqueued" in shown.out) == (0, True)
        assert run("verify", "--server", dev.server).code == 0
    finally:
        assert dev.stop()[0] == 0
    assert run("verify", "--data", tmp_path / "data").code == 0
    changed = run("log", "compare", "--a", source.log, "--b", copy)
    assert (changed.code, "the first that differs is default/" in changed.err) == (7, True)
    # Copied again, into a namespace beside it: the third life of these jobs.
    beside = run("log", "copy", "--from", copy, "--to", copy, "--to-namespace", "third", "--partitions", "2")
    assert (beside.code, "generation 2" in beside.out) == (0, True), beside.err
    same = run("log", "compare", "--a", copy, "--b", copy, "--b-namespace", "third")
    assert (same.code, "All jobs are the same" in same.out) == (0, True)
    folder = run("log", "compare", "--a", f"folder:{tmp_path / 'data' / 'node'}", "--b", copy)
    assert (folder.code, "All jobs are the same" in folder.out) == (0, True)


@pytest.fixture
def roles(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Roles]:
    found = Roles(kafka_bootstrap, tmp_path)
    try:
        yield found
    finally:
        for process in found.processes.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.mark.slow
def test_to_kafka(source: Source, roles: Roles, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kafka, namespace = roles.settings["PENSTOCK_LOG"], roles.settings["PENSTOCK_NAMESPACE"]
    monkeypatch.setenv("PENSTOCK_WORK_PARTITIONS", "3")
    target = ("--to", kafka, "--to-namespace", namespace, "--partitions", "3")
    copied = run("log", "copy", "--from", source.log, *target, "--output", "json")
    assert copied.code == 0, copied.err
    check_states(copied.json)
    same = run("log", "compare", "--a", source.log, "--b", kafka, "--b-namespace", namespace)
    assert same.code == 0
    (roles.folder / "handlers.py").write_text(AFTER)
    roles.start("orchestrator")
    roles.start("projection")
    roles.server = roles.start("api", "--port", "0").split()[-1]
    # The worker of the other side was named so: when it comes back here, what it held is taken from it at once.
    roles.start("worker", "--app", "handlers", "--name", "dev")
    with Client(roles.server) as client:
        check_work_goes_on(client, source, 60_000)
    busy = run(
        "log", "copy", "--from", kafka, "--from-namespace", namespace, "--to", kafka, "--to-namespace", "x"
    )
    assert (busy.code, "orchestrator" in busy.err, "worker dev" in busy.err) == (5, True, True)
    roles.stop()


# What is refused


def test_a_log_that_is_in_use_is_not_copied(run: Run, dev: Dev, tmp_path: Path) -> None:
    busy = run("log", "copy", "--from", f"embedded:{dev.data}", "--to", f"embedded:{tmp_path / 'c'}")
    assert (busy.code, "in use" in busy.err) == (3, True)


def test_what_makes_no_sense(run: Run, tmp_path: Path) -> None:
    log = f"embedded:{tmp_path / 'log'}"
    assert run("log", "copy", "--from", log, "--to", f"{log}2").code == 4
    asyncio.run(_made(log))
    assert run("log", "copy", "--from", log, "--to", log).code == 5
    assert run("log", "copy", "--from", log, "--to", f"{log}2", "--follow").code == 2
    assert run("log", "copy", "--from", log, "--to", "floppy:a").code == 2
    assert run("log", "compare", "--a", log, "--b", f"{log}2").code == 4
    assert run("log", "compare", "--a", log, "--b", f"folder:{tmp_path}").code == 4
    assert run("log", "copy", "--from", log, "--from-namespace", "none", "--to", f"{log}2").code == 4


async def _made(url: str, *, generation: int = 0, namespace: str = "penstock") -> None:
    from penstock.log.namespace import LogShape, begin_namespace

    async with open_log(url) as log:
        topics = Topics(namespace=namespace, partitions=4, work_partitions=4)
        await begin_namespace(log, topics, LogShape(4, generation))


def test_an_unfinished_copy_is_of_use_to_nobody(run: Run, tmp_path: Path) -> None:
    from penstock.log.namespace import LogShape, begin_namespace

    async def begin() -> None:
        async with open_log(f"embedded:{tmp_path / 'data'}") as log:
            await begin_namespace(
                log, Topics(partitions=4, work_partitions=4), LogShape(4, 1, "some/copy", "elsewhere")
            )

    asyncio.run(begin())
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli.main", "dev", "--data", tmp_path / "data", "--port", "0"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "being copied from elsewhere" in done.stderr) == (5, True)
    assert run("log", "tail", "--data", tmp_path / "data").code == 5


def test_generations_come_to_an_end(run: Run, tmp_path: Path) -> None:
    asyncio.run(_made(f"embedded:{tmp_path / 'a'}", generation=MAX_GENERATION))
    last = run("log", "copy", "--from", f"embedded:{tmp_path / 'a'}", "--to", f"embedded:{tmp_path / 'b'}")
    assert (last.code, "255" in last.err) == (5, True)


def test_a_source_with_a_leader_is_followed_and_not_sealed(
    kafka_bootstrap: str, unique_namespace: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody beats the copy is kept up and stays open; once all is quiet it is sealed."""
    kafka = f"kafka://{kafka_bootstrap}"
    monkeypatch.setenv("PENSTOCK_WORK_PARTITIONS", "2")
    topics = Topics(namespace=unique_namespace, partitions=2, work_partitions=2)
    stopping = threading.Event()

    async def lead() -> None:
        async with open_log(kafka) as log:
            for number in range(10**6):
                beat = encode_messages([Beat(orchestrator="o1", incarnation="i")])
                await log.append(topics.signals, 0, beat)
                job = f"job-{number}"
                line = encode_line(ev.Enqueued(id=f"enq.{job}", job=job, job_type="t"))
                await log.append(topics.jobs, partition_of(job, 2), line)
                await asyncio.sleep(0.1)
                if stopping.is_set():
                    return

    async def begin() -> None:
        async with open_log(kafka) as log:
            await open_namespace(log, topics)

    asyncio.run(begin())
    leader = threading.Thread(target=lambda: asyncio.run(lead()))
    leader.start()
    copy = (
        "log",
        "copy",
        "--from",
        kafka,
        "--from-namespace",
        unique_namespace,
        "--to",
        f"embedded:{tmp_path / 'c'}",
    )
    try:
        busy = run(*copy)
        assert (busy.code, "orchestrator o1" in busy.err) == (5, True)
        follower = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli.main", *copy, "--follow", "--output", "json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(PENSTOCK_WORK_PARTITIONS="2"),
        )  # fmt: skip
        wait_for("the copy begins", (tmp_path / "c" / "log").is_dir)
        threading.Event().wait(3)
        follower.send_signal(signal.SIGINT)
        out, err = follower.communicate(timeout=60)
        assert follower.returncode == 0, err
        assert json.loads(out)["sealed"] is False
        assert sum(part["lines"] for part in json.loads(out)["partitions"]) > 0
    finally:
        stopping.set()
        leader.join()
    done = run(*copy, "--output", "json")
    assert (done.code, done.json["sealed"]) == (0, True), done.err
    assert sum(part["found"] for part in done.json["partitions"]) > 0
    assert done.json["copy"]["jobs"] > 5


@pytest.mark.slow
def test_a_copier_that_is_killed_is_followed_by_one_that_finishes(
    kafka_bootstrap: str, unique_namespace: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_WORK_PARTITIONS", "2")
    kafka, jobs = f"kafka://{kafka_bootstrap}", 3_000
    source = Topics(namespace="penstock", partitions=2, work_partitions=2)
    target = Topics(namespace=unique_namespace, partitions=5, work_partitions=2)

    async def fill() -> None:
        """A line a record, so that the copy takes a while."""
        async with open_log(f"embedded:{tmp_path}") as log:
            await open_namespace(log, source)
            lines = [ev.Enqueued(id=f"enq.{n}", job=f"job-{n}", job_type="t") for n in range(jobs)]
            work = (log.append(source.jobs, partition_of(one.job, 2), encode_line(one)) for one in lines)
            await asyncio.gather(*work)

    async def written() -> int:
        async with open_log(kafka) as log:
            with contextlib.suppress(TopicMismatch):
                return sum([(await log.bounds(target.jobs, n)).end for n in range(target.partitions)])
        return 0

    asyncio.run(fill())
    # Small portions: as from a cluster that gives little at a time.
    code = "from penstock.state import copy_fold as f; f._POLL_RECORDS = 2; from penstock.cli.main import main; main()"
    copy = (
        "log",
        "copy",
        "--from",
        f"embedded:{tmp_path}",
        "--to",
        kafka,
        "--to-namespace",
        unique_namespace,
    )
    copier = subprocess.Popen(
        [sys.executable, "-c", code, *copy, "--partitions", "5", "--work", tmp_path / "work"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(PENSTOCK_WORK_PARTITIONS="2"),
    )  # fmt: skip
    try:
        wait_for("a part of it is copied", lambda: asyncio.run(written()) > 20)
    finally:
        copier.kill()
        assert copier.wait() == -signal.SIGKILL
    done = run(*copy, "--partitions", "5", "--output", "json")
    assert (done.code, done.json["sealed"]) == (0, True), done.err
    found, lines = (sum(part[name] for part in done.json["partitions"]) for name in ("found", "lines"))
    assert min(found, lines) > 20
    assert found + lines >= jobs
    assert done.json["copy"]["states"] == {"ready": jobs}
