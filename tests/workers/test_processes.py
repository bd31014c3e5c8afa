"""Handlers in processes of their own: what they can do there, and that they can be stopped for sure."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.workers.app import App
from penstock.workers.bodies import Bodies
from penstock.workers.errors import AppInvalid, TaskInvalid
from penstock.workers.loading import load_apps, source_of
from penstock.workers.runtime import Worker
from penstock.workers.task import task
from tests.waiting import until
from tests.workers import process_handlers
from tests.workers.bench import job
from tests.workers.fakes import FakeTransport

HANDLERS = str(Path(process_handlers.__file__))


@asynccontextmanager
async def working(
    bodies: Bodies | None = None, **options: Any
) -> AsyncIterator[tuple[FakeTransport, Worker]]:
    transport = FakeTransport(bodies)
    options.setdefault("grace_ms", 0)
    async with Worker(load_apps([HANDLERS]), transport, **options) as worker:
        yield transport, worker


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


async def test_it_runs_elsewhere_and_the_process_is_kept_for_the_next(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with working() as (transport, _):
        transport.give(job("whoami", "0.1.1", {"text": "a"}), job("here", "0.1.2"))
        first = await transport.succeeded("0.1.1")
        assert first | {"pid": 0} == {"pid": 0, "text": "A", "job": "job-0.1.1", "attempt": 1}
        assert first["pid"] != os.getpid() == await transport.succeeded("0.1.2")
        transport.give(job("whoami", "0.1.3", {"text": "b"}))
        assert (await transport.succeeded("0.1.3"))["pid"] == first["pid"]
        (record, _) = [record for record in caplog.records if record.message == "logged by a handler"]
        assert (record.levelno, record.name, vars(record)["job"], vars(record)["n"]) == (
            logging.WARNING, "penstock.job", "job-0.1.1", 7
        )  # fmt: skip
    assert "printed by a handler" in capfd.readouterr().err
    assert is_gone(first["pid"])


async def test_progress_checkpoints_and_steps() -> None:
    async with working() as (transport, _):
        transport.give(job("reports"))
        assert await transport.succeeded("0.1.1") == [5, {"row": 1}]
        told = [
            (event.seq, event.percent, event.checkpoint and msgspec.json.decode(event.checkpoint))
            for event in transport.told
        ]
        assert told[-2:] == [
            (told[-2][0], None if len(told) == 3 else 50, {"row": 1}),
            (told[-1][0], None, {"penstock.steps": {"once": 5}, "checkpoint": {"row": 1}}),
        ]
        assert told[0][1] == 50


async def test_dependencies_and_middleware_are_in_the_process_as_well() -> None:
    async with working() as (transport, _):
        transport.give(job("provided"))
        assert await transport.succeeded("0.1.1") == [True, "around"]


async def test_how_it_may_end() -> None:
    async with working() as (transport, _):
        transport.give(
            *(
                job("ends", f"0.1.{n}", {"how": how}, rules=2)
                for n, how in enumerate(("fatal", "snooze", "why"))
            )
        )
        fatal = (await transport.failed("0.1.0")).error
        assert (fatal.code, fatal.message, fatal.retryable) == ("never", "never", False)
        assert b'"a":1' in bytes(fatal.details)
        assert b"process_handlers.py" in bytes(fatal.details)
        await until(lambda: "0.1.1" in transport.outcomes)
        assert type(transport.outcomes["0.1.1"]).__name__ == "Snoozed"
        assert (await transport.failed("0.1.2")).error.code == "ValueError"


@pytest.mark.parametrize(("how", "text"), [("exit", "with exit code 3"), ("killed", "killed by SIGKILL")])
async def test_a_process_that_dies_fails_its_attempt_and_nothing_else(how: str, text: str) -> None:
    async with working() as (transport, _):
        transport.give(job("ends", "0.1.1", {"how": how}))
        error = (await transport.failed("0.1.1")).error
        assert (error.code, error.retryable) == ("process_died", True)
        assert text in error.message
        transport.give(job("whoami", "0.1.2", {"text": "a"}))
        assert (await transport.succeeded("0.1.2"))["text"] == "A"


async def test_one_that_listens_is_stopped_by_asking() -> None:
    async with working() as (transport, worker):
        (lease,) = transport.give(job("obeys"))
        await until(lambda: worker.busy == 1)
        transport.cancel(lease)
        assert await transport.returned("0.1.1") == "cancelled"


@pytest.mark.parametrize("how", ["timeout", "lost", "shutdown"])
async def test_b6_one_that_does_not_is_killed_with_all_that_it_started(how: str, tmp_path: Path) -> None:
    timeout_ms = 1_500 if how == "timeout" else 0
    async with working() as (transport, worker):
        (lease,) = transport.give(job("deaf", payload={"folder": str(tmp_path)}, timeout_ms=timeout_ms))
        await until(
            lambda: (tmp_path / "pids").is_file() and len((tmp_path / "pids").read_text().split()) == 2
        )
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        if how == "timeout":
            assert (await transport.failed("0.1.1")).error.code == "timeout"
        if how == "lost":
            transport.lose(lease)
        if how != "shutdown":
            await until(lambda: worker.busy == 0)
            await until(lambda: all(map(is_gone, pids)))
    await until(lambda: all(map(is_gone, pids)))
    if how == "shutdown":
        assert await transport.returned("0.1.1") == "shutdown"


@pytest.mark.parametrize(
    ("module", "text"),
    [(__name__, "has no tasks"), (process_handlers.__name__, "process_handlers has no task for elsewhere")],
)
async def test_what_a_child_cannot_load_is_said_before_a_job_is_taken(module: str, text: str) -> None:
    def elsewhere() -> None: ...

    elsewhere.__module__ = module
    transport = FakeTransport()
    with pytest.raises(AppInvalid, match=f"a child process cannot load the tasks: .*{text}"):
        async with Worker([task(process=True)(elsewhere)], transport):
            pass
    assert transport.recipient is None


async def test_in_threads_where_that_is_asked_for() -> None:
    async with working(processes=False) as (transport, _):
        transport.give(job("whoami", payload={"text": "a"}))
        assert (await transport.succeeded("0.1.1"))["pid"] == os.getpid()


def test_only_def_handlers() -> None:
    async def runs() -> None: ...

    with pytest.raises(TaskInvalid, match="process=True is for def handlers"):
        task(process=True)(runs)


def test_where_a_task_is_found_again() -> None:
    assert source_of(process_handlers.whoami) == "tests.workers.process_handlers"
    assert App(process_handlers.app).only(["ends"]).tasks.keys() == {"ends"}
