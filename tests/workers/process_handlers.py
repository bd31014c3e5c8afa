"""Handlers that run in child processes, which load this module by themselves."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

from penstock import App, Call, Context, Depends, NonRetryable, Snooze, task

app = App()


@app.task(process=True)
def whoami(text: str, ctx: Context) -> dict[str, Any]:
    print("printed by a handler")
    ctx.log.warning("logged by a handler", extra={"n": 7})
    return {"pid": os.getpid(), "text": text.upper(), "job": ctx.job_id, "attempt": ctx.attempt}


@app.task(process=True)
def reports(ctx: Context) -> Any:
    ctx.progress(50, "half")
    ctx.save({"row": 1})
    done = ctx.step("once", lambda: 5)
    return [done, ctx.checkpoint]


@app.task(process=True)
def ends(how: str) -> Any:
    if how == "fatal":
        raise NonRetryable("never", code="never", details={"a": 1})
    if how == "snooze":
        return Snooze(60_000, "not yet")
    if how == "exit":
        os._exit(3)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(how)


@app.task(process=True)
def obeys(ctx: Context) -> str:
    while not ctx.cancelled:
        time.sleep(0.01)
    ctx.raise_if_cancelled()
    return "unreachable"


@app.task(process=True)
def deaf(folder: str) -> None:
    """Never listens, and has a child of its own."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(f"{folder}/pids", "w", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {grandchild.pid}")
    while True:
        sum(range(10_000))


def opened() -> Iterator[int]:
    logging.getLogger("handlers").warning("opened")
    yield os.getpid()


@app.task(process=True)
def provided(pid: Annotated[int, Depends(opened)]) -> bool:
    return pid == os.getpid()


@app.middleware
async def around(ctx: Context, call: Call) -> Any:
    value = await call()
    return [value, "around"] if ctx.job_type == "provided" else value


@task
async def here() -> int:
    return os.getpid()
