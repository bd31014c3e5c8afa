"""Starting, failing and stopping roles."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from penstock.cli.roles import Part, Service, StopTimedOut, request_stop, run_roles
from penstock.schemas.errors import LogCorrupt, PenstockError
from tests.waiting import PATIENCE_S


class Role:
    """Notes what happens to it."""

    def __init__(self, name: str, notes: list[str], *, stop_s: float = 0) -> None:
        self.name = name
        self.notes = notes
        self.stop_s = stop_s
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Role:
        self.notes.append(f"{self.name} starts")
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        await asyncio.sleep(self.stop_s)
        self.notes.append(f"{self.name} stops{'' if kind is None else ' in trouble'}")


def composed(*makers: Callable[[], Role], then: Callable[[list[Role]], None] = lambda roles: None):
    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        roles = [await stack.enter_async_context(make()) for make in makers]
        then(roles)
        return roles

    return compose


async def test_a_signal_stops_in_reverse_order_and_in_peace():
    notes: list[str] = []
    compose = composed(lambda: Role("log", notes), lambda: Role("api", notes))

    def on_ready() -> None:
        notes.append("ready")
        request_stop()

    await run_roles(compose, on_ready=on_ready)
    assert notes == ["log starts", "api starts", "ready", "api stops", "log stops"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_either_signal_stops(number: int, capsys: pytest.CaptureFixture[str]):
    notes: list[str] = []
    await run_roles(composed(lambda: Role("a", notes)), on_ready=lambda: signal.raise_signal(number))
    assert notes[-1] == "a stops"
    assert "stopping" in capsys.readouterr().err


async def test_a_signal_during_the_start_ends_it():
    notes: list[str] = []

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        await stack.enter_async_context(Role("a", notes))
        request_stop()
        await asyncio.Event().wait()
        raise AssertionError

    await run_roles(compose)
    assert notes == ["a starts", "a stops in trouble"]


async def test_the_first_failure_stops_the_others_and_is_raised():
    notes: list[str] = []

    def fail(roles: list[Role]) -> None:
        roles[0].failure.set_exception(LogCorrupt("bad block"))

    with pytest.raises(LogCorrupt, match="bad block"):
        await run_roles(composed(lambda: Role("a", notes), lambda: Role("b", notes), then=fail))
    assert notes[2:] == ["b stops in trouble", "a stops in trouble"]


async def test_a_bug_names_the_role():
    def fail(roles: list[Role]) -> None:
        roles[0].failure.set_exception(KeyError("x"))

    with pytest.raises(PenstockError, match="Role failed: KeyError: 'x'"):
        await run_roles(composed(lambda: Role("a", []), then=fail))


async def test_a_cancellation_that_nobody_asked_for_is_no_orderly_end():
    def leak(roles: list[Role]) -> None:
        raise asyncio.CancelledError

    with pytest.raises(PenstockError, match="nobody had asked"):
        await run_roles(composed(lambda: Role("a", []), then=leak))


async def test_a_role_that_ends_is_a_failure():
    def end(roles: list[Role]) -> None:
        roles[0].failure.set_result(None)

    with pytest.raises(PenstockError, match="Role ended by itself"):
        await run_roles(composed(lambda: Role("a", []), then=end))


async def test_a_start_that_fails_stops_what_was_started():
    notes: list[str] = []

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        await stack.enter_async_context(Role("a", notes))
        raise LogCorrupt("no")

    with pytest.raises(LogCorrupt):
        await run_roles(compose)
    assert notes == ["a starts", "a stops in trouble"]


async def test_a_stop_has_a_deadline():
    tasks_before = asyncio.all_tasks()
    with pytest.raises(StopTimedOut):
        await run_roles(
            composed(lambda: Role("slow", [], stop_s=60)), on_ready=request_stop, stop_deadline_s=0.02
        )
    for task in asyncio.all_tasks() - tasks_before:
        task.cancel()
        await asyncio.wait({task})


async def test_signals_are_given_back_at_the_end():
    before = signal.getsignal(signal.SIGTERM)
    await run_roles(composed(lambda: Role("a", [])), on_ready=request_stop)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_part_is_a_service():
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    failed.set_exception(LogCorrupt("no"))

    async def compose(stack: AsyncExitStack) -> Sequence[Service]:
        return [Part(failed)]

    with pytest.raises(LogCorrupt):
        await run_roles(compose)


_HANGS = """
import asyncio, sys
from penstock.cli import roles
roles.SAME_SIGNAL_S = 0.05
class Slow:
    async def __aenter__(self):
        self.failure = asyncio.get_running_loop().create_future()
        return self
    async def __aexit__(self, *_):
        print("leaving", flush=True)
        await asyncio.sleep(60)
async def compose(stack):
    return [await stack.enter_async_context(Slow())]
roles.run(compose, on_ready=lambda: print("ready", flush=True))
"""


def test_a_second_signal_ends_the_process_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", _HANGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "leaving\n"
        while process.poll() is None:
            # Those that come at once count as the first one.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        _, err = process.communicate()
    assert process.returncode == 130
    assert "stopped at once" in err


_DEAF = """
import asyncio, sys, threading, time
from penstock.cli import leaving, main, roles
from penstock.schemas.errors import LogCorrupt

leaving.LAST_WAIT_S = 0.1
what, ending = sys.argv[1:]

async def task():
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

async def thread():
    threading.Thread(target=time.sleep, args=(600,)).start()

async def executor():
    await asyncio.to_thread(time.sleep, 600)

class Role:
    async def __aenter__(self):
        self.failure = asyncio.get_running_loop().create_future()
        self.going_on = asyncio.create_task(globals()[what]())
        await asyncio.sleep(0.05)
        if ending == "failure":
            self.failure.set_exception(LogCorrupt("the log is no more"))
        return self

    async def __aexit__(self, *_):
        pass

async def compose(stack):
    return [await stack.enter_async_context(Role())]

main.app = lambda: roles.run(compose, on_ready=roles.request_stop if ending == "signal" else None)
main.entry()
"""


@pytest.mark.parametrize("what", ["task", "thread", "executor"])
@pytest.mark.parametrize("ending", ["signal", "failure"])
def test_what_does_not_end_does_not_keep_the_process(what: str, ending: str):
    done = subprocess.run(
        [sys.executable, "-c", _DEAF, what, ending],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == (0 if ending == "signal" else LogCorrupt.exit_code), done.stderr
    assert ("the log is no more" in done.stderr) == (ending == "failure")
    assert "Traceback" not in done.stderr
