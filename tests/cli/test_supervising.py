"""Worker processes under a supervisor: grown by what waits, started again, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.client.http import Client
from tests.cli.conftest import Dev, environment
from tests.waiting import wait_for

CROWD = """
import asyncio
import os
from penstock import task

@task
async def sleeps(ms: int) -> int:
    await asyncio.sleep(ms / 1000)
    return os.getpid()
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    service = Dev(tmp_path_factory.mktemp("dev"))
    try:
        yield service
    finally:
        service.stop()


class Supervised:
    """A `penstock worker` with several processes."""

    def __init__(self, folder: Path, dev: Dev, *arguments: str) -> None:
        (folder / "crowd.py").write_text(CROWD)
        self.errors = folder / "worker.txt"
        command = [sys.executable, "-m", "penstock.cli.main", "worker", "--server", dev.server, *arguments]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors,
                env=environment(PENSTOCK_GRACE_MS="200"),
            )  # fmt: skip

    def children(self) -> list[int]:
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=40)


@contextmanager
def supervised(folder: Path, dev: Dev, processes: str, *arguments: str) -> Iterator[Supervised]:
    found = Supervised(folder, dev, "--app", "crowd", "--processes", processes, *arguments)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.stop()


def pids(client: Client, jobs: list[dict[str, Any]]) -> set[int]:
    """Of the processes that ran these jobs."""
    return {client.result(job["id"], timeout_ms=60_000) for job in jobs}


def eventually(condition: Callable[[], bool]) -> None:
    wait_for("the processes are as they should be", condition)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_flood_calls_more_and_all_of_them_leave_with_it(dev: Dev, tmp_path: Path) -> None:
    with (
        supervised(tmp_path, dev, "1..3", "--concurrency", "2", "--name", "crowd") as crowd,
        Client(dev.server) as client,
    ):
        [first] = pids(client, [client.enqueue("sleeps", {"ms": 0})])
        assert len(crowd.children()) == 1
        ran: set[int] = set()

        def all_take_part() -> bool:
            flood = [client.enqueue("sleeps", {"ms": 400}) for _ in range(30)]
            eventually(lambda: len(crowd.children()) == 3)
            ran.update(pids(client, flood))
            return len(ran) >= 3

        # One flood may be over before a slow machine has started them.
        eventually(all_take_part)
        assert first in ran
        names = {worker["id"] for worker in client.resource("workers")["items"]}
        assert {"crowd-1", "crowd-2", "crowd-3"} <= names
        assert crowd.stop() == 0
        eventually(lambda: all(map(gone, ran)))


def test_one_that_is_killed_is_started_again(dev: Dev, tmp_path: Path) -> None:
    with supervised(tmp_path, dev, "2") as crowd, Client(dev.server) as client:
        eventually(lambda: len(crowd.children()) == 2)
        job = client.enqueue("sleeps", {"ms": 0})
        pids(client, [job])
        before = crowd.children()
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(crowd.children()) == 2 and before[0] not in crowd.children())
        assert before[1] in crowd.children()
        pids(client, [client.enqueue("sleeps", {"ms": 0})])
    assert "killed by signal 9" in crowd.errors.read_text()


def test_none_outlives_its_supervisor(dev: Dev, tmp_path: Path) -> None:
    with supervised(tmp_path, dev, "2") as crowd, Client(dev.server) as client:
        eventually(lambda: len(crowd.children()) == 2)
        pids(client, [client.enqueue("sleeps", {"ms": 0})])
        children = crowd.children()
        crowd.process.kill()
        eventually(lambda: all(map(gone, children)))


def test_what_cannot_start_is_said_and_not_tried_for_ever(dev: Dev, tmp_path: Path) -> None:
    wrong = Supervised(tmp_path, dev, "--app", "nowhere", "--processes", "1..3")
    assert wrong.process.wait(timeout=40) == 1
    said = wrong.errors.read_text()
    assert "nowhere" in said
    assert "could not start" in said
    assert "Traceback" not in said
    badly = Supervised(tmp_path, dev, "--app", "crowd", "--processes", "3..1")
    assert badly.process.wait(timeout=40) == 2
    assert "--processes" in badly.errors.read_text()
