"""Handlers of all kinds under `penstock dev`: programs, processes, steps, dependencies; and docs/handlers.md."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.workers.app import App
from penstock.workers.task import Task
from tests.cli.conftest import Dev, Result, Run, environment

PAGE = Path(__file__).parent.parent.parent / "docs" / "handlers.md"
PROCESSES = """
import logging
import os
import time

from penstock import Context, task

@task(process=True)
def busy(folder: str) -> None:
    with open(f"{folder}/pid", "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(0.1)

@task
async def talks(text: str, ctx: Context) -> None:
    ctx.log.info("begun with %s", text, extra={"row": 1})
    logging.getLogger("own").warning("own")

@task
async def both(text: str) -> list:
    return [len(text.split()), text]

@task(process=True)
def square(n: int, ctx: Context) -> int:
    return ctx.step("square", lambda: n * n)
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("dev")
    (folder / "processes.py").write_text(PROCESSES)
    command = (
        f"words={sys.executable} -c 'import sys, json; print(len(json.load(sys.stdin)[\"text\"].split()))'"
    )
    fails = "fails=/bin/sh -c 'echo no >&2; exit 9'"
    service = Dev(folder, "--app", "processes.py", "--command", command, "--command", fails)
    try:
        yield service
    finally:
        service.stop()


def result(ask: Run, *arguments: str) -> Result:
    return ask("enqueue", *arguments, "--wait", "--output", "json")


def test_a_program_is_a_handler(ask: Run, dev: Dev) -> None:
    assert "both, busy, fails, square, talks, words" in dev.greeting
    assert json.loads(result(ask, "words", '{"text": "one two three"}').out)["result"] == 3
    failed = json.loads(result(ask, "fails", "--max-attempts", "1").out)
    assert failed["state"] == "dead"
    assert failed["errors"][0]["code"] == "exit_9"
    assert failed["errors"][0]["details"]["details"]["stderr"] == "no\n"


def test_large_payloads_and_results_lie_beside_the_log(ask: Run, dev: Dev, tmp_path: Path) -> None:
    text = "two words " * 40_000
    body = json.dumps({"text": text}).encode()
    done = json.loads(ask("enqueue", "both", "-", "--wait", "--output", "json", stdin=body).out)
    assert done["state"] == "succeeded", done["errors"]
    assert "$claim" in done["payload"]
    assert json.loads(ask("jobs", "payload", done["id"]).out) == {"text": text}
    assert json.loads(ask("jobs", "result", done["id"]).out) == [80_000, text]
    counted = ask("enqueue", "words", "-", "--wait", "--output", "json", stdin=body)
    assert json.loads(counted.out)["result"] == 80_000
    swept = ask("claims", "sweep", "--older-than", "1h", "--delete", "--output", "json").out
    assert json.loads(swept) == {"jobs": 0, "objects": 0, "size_bytes": 0, "deleted": True}
    wrong = ask("claims", "sweep", "--older-than", "soon")
    assert (wrong.code, "--older-than" in wrong.err) == (2, True)


def test_what_a_handler_logs_is_printed_and_searched(ask: Run, dev: Dev) -> None:
    job = json.loads(result(ask, "talks", '{"text": "once"}').out)
    followed = ask("jobs", "log", job["id"], "--follow")
    assert [line.split()[2:] for line in followed.out.splitlines()] == [
        ["begun", "with", "once", "row=1"],
        ["own"],
    ]
    assert followed.out.splitlines()[1].split()[1] == "warning"
    [found] = ask("jobs", "log", job["id"], "--grep", "ROW=", "--output", "json").out.splitlines()
    assert json.loads(found)["message"] == "begun with once"
    assert ask("jobs", "log", job["id"], "--level", "error").out == ""
    none = ask("jobs", "log", job["id"], "--attempt", "2")
    assert (none.code, "no attempt '2'" in none.err) == (4, True)


def test_a_process_runs_and_a_cancel_ends_it(ask: Run, tmp_path: Path) -> None:
    squared = json.loads(result(ask, "square", '{"n": 12}').out)
    assert (squared["result"], squared["checkpoint"]) == (144, {"penstock.steps": {"square": 144}})
    limits = ("--timeout-ms", "1500", "--max-attempts", "1")
    stopped = json.loads(result(ask, "busy", json.dumps({"folder": str(tmp_path)}), *limits).out)
    assert (stopped["state"], stopped["errors"][0]["code"]) == ("dead", "timeout")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--command", "nothing"], 2, "'nothing' is not TYPE=PROGRAM"),
        (["--command", "a=true", "--command", "a=false"], 2, "two tasks handle the job type 'a'"),
        (["--command", "a='"], 2, "No closing quotation"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run: Run, tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    done = run("dev", "--data", tmp_path, "--port", "0", *arguments)
    assert done.code == code
    assert text in done.err
    assert len(done.err.splitlines()) == 1


def test_a_dependency_that_cannot_be_opened_ends_the_service_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from typing import Annotated\n"
        "from penstock import Depends, task\n"
        "def pool() -> str:\n    raise ConnectionError('no database')\n"
        "@task\nasync def work(db: Annotated[str, Depends(pool)]) -> None: ...\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli.main", "dev", "--data", "data", "--port", "0", "--app", "broken.py"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pool cannot be opened: ConnectionError: no database" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_s_examples_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for number, block in enumerate(blocks):
        module = types.ModuleType(f"handlers_page_{number}")
        sys.modules[module.__name__] = module
        try:
            exec(compile(block, f"handlers.md, example {number}", "exec"), vars(module))
            for value in list(vars(module).values()):
                if isinstance(value, Task | App):
                    found.update(one.name for one in App(value))
                    assert all(one.arguments for one in App(value))
        finally:
            del sys.modules[module.__name__]
    assert found == {"resize", "render", "thumbnail", "checkout", "transfer", "work"}


def test_all_is_ended_in_the_end(dev: Dev) -> None:
    code, err = dev.stop(signal.SIGTERM)
    assert (code, "Traceback" in err) == (0, False)
