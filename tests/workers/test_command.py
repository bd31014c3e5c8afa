"""Programs as handlers: what they are given, what their exit codes say, and that they are stopped for sure."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.schemas.limits import DEFAULT_CLAIM_BYTES
from penstock.workers.command import command_task, parse_commands
from penstock.workers.errors import TaskInvalid
from penstock.workers.groups import start_group
from tests.waiting import until
from tests.workers.bench import job, running
from tests.workers.test_processes import is_gone


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def run(script: str, payload: Any = None, **options: Any) -> Any:
    async with running(command_task("it", sh(script), **options)) as (transport, _):
        transport.give(job("it", payload=payload, attempt=2))
        return await transport.outcome("0.1.1")


async def result(script: str, payload: Any = None, **options: Any) -> Any:
    return msgspec.json.decode((await run(script, payload, **options)).result)


async def test_the_payload_goes_in_and_what_is_printed_comes_out() -> None:
    assert await result("cat", {"a": ["ö", None]}) == {"a": ["ö", None]}
    assert await result("echo hello; echo there", prints="text") == "hello\nthere\n"
    assert await result("true") is None
    assert await result("exec <&-; sleep 0.05", "x" * 200_000) is None, "it need not read what it is given"


async def test_it_is_told_what_it_runs_for(tmp_path: Path) -> None:
    names = ("PENSTOCK_JOB", "PENSTOCK_ATTEMPT", "PENSTOCK_FENCE", "MINE", "PWD")
    script = 'printf \'["%s","%s","%s","%s","%s"]\' ' + " ".join(f'"${name}"' for name in names)
    assert await result(script, env={"MINE": "yes"}, cwd=tmp_path) == [
        "job-0.1.1",
        "2",
        "17",
        "yes",
        str(tmp_path),
    ]


@pytest.mark.parametrize(
    ("script", "code", "retryable", "text"),
    [
        ("echo it is broken >&2; exit 3", "exit_3", True, "exit code 3: it is broken"),
        ("exit 4", "exit_4", False, "exit code 4"),
        ("kill -SEGV $$", "signal_SIGSEGV", True, "killed by SIGSEGV"),
        ("echo '{'", "invalid_result", False, "what is not JSON"),
        (f"head -c {DEFAULT_CLAIM_BYTES + 5} /dev/zero", "result_too_large", False, "more than the"),
    ],
)
async def test_how_it_may_fail(script: str, code: str, retryable: bool, text: str) -> None:
    error = (await run(script, fatal_exit_codes=[4])).error
    assert (error.code, error.retryable) == (code, retryable)
    assert text in error.message
    if code == "exit_3":
        assert msgspec.json.decode(error.details)["details"] == {"exit_code": 3, "stderr": "it is broken\n"}


async def test_a_program_that_is_not_there() -> None:
    for options in ({}, {"cpu_s": 5}):
        async with running(command_task("it", ["./no-such-program"], **options)) as (transport, _):
            transport.give(job("it"))
            error = (await transport.failed("0.1.1")).error
            assert error.code == ("exit_127" if options else "command_not_found")
            assert not error.retryable


async def test_its_stderr_is_logged_as_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "penstock.job")
    assert await result("echo first >&2; echo second >&2; printf third >&2; echo 5") == 5
    told = [
        (record.message, vars(record)["job"]) for record in caplog.records if record.name == "penstock.job"
    ]
    assert told == [("first", "job-0.1.1"), ("second", "job-0.1.1"), ("third", "job-0.1.1")]


async def test_limits() -> None:
    grow = f'{sys.executable} -c "x = bytearray(400 << 20); print(len(x))"'
    assert await result(grow) == 400 << 20
    assert (await run(grow, memory_bytes=300 << 20)).error.code == "exit_1"
    assert (await run("while :; do :; done", cpu_s=1)).error.code in ("signal_SIGXCPU", "signal_SIGKILL")


DEAF = "trap '' TERM; sleep 600 & echo $$ $! > pids; while :; do sleep 1; done"


@pytest.mark.parametrize("how", ["timeout", "cancelled", "lost"])
async def test_b6_it_is_stopped_with_all_that_it_started(how: str, tmp_path: Path) -> None:
    script = DEAF if how != "cancelled" else DEAF.replace("trap '' TERM; ", "")
    async with running(command_task("it", sh(script), cwd=tmp_path)) as (transport, worker):
        (lease,) = transport.give(job("it", timeout_ms=1_000 if how == "timeout" else 0))
        await until(lambda: (tmp_path / "pids").is_file() and (tmp_path / "pids").read_text().endswith("\n"))
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        if how == "timeout":
            assert (await transport.failed("0.1.1")).error.code == "timeout"
        elif how == "cancelled":
            transport.cancel(lease)
            assert await transport.returned("0.1.1") == "cancelled"
        else:
            transport.lose(lease)
        await until(lambda: worker.busy == 0)
        await until(lambda: all(map(is_gone, pids)))


async def test_a_start_that_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    starting = asyncio.create_task(start_group(*sh(script), stdin=PIPE, stdout=PIPE, stderr=PIPE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # It runs already while the loop has not yet taken its pipes in hand.
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith("\n"):
        time.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: is_gone(int((tmp_path / "pid").read_text())))


async def test_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    assert await result("sleep 600 & echo $! > pid; echo 7; exit 0".replace("pid;", f"{tmp_path}/pid;")) == 7
    await until(lambda: is_gone(int((tmp_path / "pid").read_text())))


def test_commands_as_they_are_given_on_the_command_line() -> None:
    [first, second] = parse_commands(["thumb=./thumb.sh --size '10 20'", " y=true "])
    assert (first.name, second.name) == ("thumb", "y")
    for wrong in ("thumb", "=true", "a=", "a b=true", "a='"):
        with pytest.raises(TaskInvalid):
            parse_commands([wrong])


def test_what_makes_no_sense() -> None:
    wrongs: list[dict[str, Any]] = [
        {"argv": []},
        {"argv": [""]},
        {"argv": ["a"], "memory_bytes": 5},
        {"argv": ["a"], "cpu_s": 0},
    ]
    for wrong in wrongs:
        with pytest.raises(TaskInvalid):
            command_task("it", **wrong)
    wrong_prints: Any = "xml"
    with pytest.raises(TaskInvalid, match="json or text"):
        command_task("it", ["a"], prints=wrong_prints)
