"""Programs as handlers: the payload goes to a program's stdin, what it prints is the result, its exit code says how it
ended.

::

    thumbnail = command_task("thumbnail", ["./thumbnail.sh"], memory_bytes=256 << 20, timeout_ms=60_000)

No shell is involved, and nothing of the payload reaches the arguments. A program runs in a process group of its own:
to stop it the group gets SIGTERM, and SIGKILL soon after.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from penstock.client.requests import JobOptions
from penstock.schemas.limits import DEFAULT_CLAIM_BYTES
from penstock.workers.app import AnyTask
from penstock.workers.context import Context
from penstock.workers.errors import HandlerError, NonRetryable, TaskInvalid
from penstock.workers.groups import exited, kill_group, signal_group, start_group
from penstock.workers.outcome import StopReason
from penstock.workers.task import Task

STDERR_TAIL_BYTES = 4 << 10
"""Of what a program wrote to stderr, kept with its failure."""

LINE_BYTES = 64 << 10
"""A longer line of stderr is logged in parts."""

TERM_S: Mapping[StopReason, float] = {"timeout": 0.5, "cancelled": 10.0, "shutdown": 1.0, "lost": 0.1}
"""Between SIGTERM and SIGKILL."""

LEFT_BEHIND_S = 1.0
"""After a program's end, for its output to come to an end as well."""

NOT_FOUND_EXIT_CODE = 127
"""As shells have it: there is no such program."""

Printed = Literal["json", "text"]


class CommandFailed(HandlerError):
    """The program ended with an exit code that calls for another attempt."""


class CommandFailedForGood(NonRetryable):
    """The program cannot be started, or ended with an exit code that no attempt can mend."""


class _Command:
    """What is run for each job."""

    def __init__(
        self, argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str], limits: Sequence[str],
        fatal_exit_codes: Collection[int], prints: Printed,
    ) -> None:  # fmt: skip
        self._argv = [*limits, *argv]
        self._program = argv[0]
        self._cwd = cwd
        self._env = dict(env)
        self._fatal = frozenset(fatal_exit_codes)
        self._prints: Printed = prints

    async def run(self, payload: Any, ctx: Context) -> Any:
        """The result of one attempt. Raises CommandFailed, CommandFailedForGood."""
        process = await self._start(ctx)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        writing = asyncio.create_task(_write(process.stdin, msgspec.json.encode(payload)))
        reading = asyncio.create_task(_read_most(process.stdout, DEFAULT_CLAIM_BYTES + 1))
        logging = asyncio.create_task(_log_lines(process.stderr, ctx))
        try:
            code = await exited(process)
            # Those that it started and left behind may hold its pipes open: they are ended with it.
            await asyncio.wait([writing, reading, logging], timeout=LEFT_BEHIND_S)
        finally:
            try:
                await _end(process, ctx.stop_reason)
            finally:
                # Told to stop once more, while it stops, it still leaves nobody behind who reads.
                done = await asyncio.gather(writing, reading, logging, return_exceptions=True)
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure
        printed, tail = reading.result(), logging.result()
        if code != 0:
            raise self._failure(code, tail)
        return self._result(printed)

    async def _start(self, ctx: Context) -> Process:
        own = {
            "PENSTOCK_JOB": ctx.job_id, "PENSTOCK_JOB_TYPE": ctx.job_type, "PENSTOCK_TENANT": ctx.tenant,
            "PENSTOCK_ATTEMPT": str(ctx.attempt), "PENSTOCK_MAX_ATTEMPTS": str(ctx.max_attempts),
            "PENSTOCK_FENCE": ctx.fence, "PENSTOCK_LEASE": ctx.lease, "PENSTOCK_TRACEPARENT": ctx.trace,
        }  # fmt: skip
        try:
            return await start_group(
                *self._argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=self._cwd, limit=LINE_BYTES,
                env={**os.environ, **self._env, **own},
            )  # fmt: skip
        except OSError as error:
            raise CommandFailedForGood(
                f"{self._program} cannot be started: {error.strerror or error}", code="command_not_found"
            ) from error

    def _failure(self, code: int, tail: bytes) -> HandlerError:
        stderr = tail.decode("utf-8", "replace")
        details = {"exit_code": code, "stderr": stderr}
        last = stderr.rstrip().rpartition("\n")[2]
        if code < 0:
            name = signal.Signals(-code).name
            return CommandFailed(
                f"{self._program} was killed by {name}", code=f"signal_{name}", details=details
            )
        message = f"{self._program} ended with exit code {code}" + (f": {last}" if last else "")
        fatal = code in self._fatal or code == NOT_FOUND_EXIT_CODE
        kind = CommandFailedForGood if fatal else CommandFailed
        return kind(message, code=f"exit_{code}", details=details)

    def _result(self, printed: bytes) -> Any:
        if len(printed) > DEFAULT_CLAIM_BYTES:
            raise NonRetryable(
                f"{self._program} printed more than the {DEFAULT_CLAIM_BYTES} bytes that are kept",
                code="result_too_large",
            )
        if self._prints == "text":
            return printed.decode("utf-8", "replace")
        if not printed.strip():
            return None
        try:
            return msgspec.json.decode(printed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NonRetryable(
                f"{self._program} printed what is not JSON: {error}", code="invalid_result"
            ) from error


async def _write(stdin: asyncio.StreamWriter, payload: bytes) -> None:
    # A program need not read its payload; what is said of one that has ended already depends on the event loop.
    with suppress(ConnectionError, RuntimeError):
        stdin.write(payload)
        await stdin.drain()
        stdin.close()


async def _read_most(stdout: asyncio.StreamReader, most: int) -> bytes:
    """The first bytes; the rest is read, so that the program can go on, and dropped."""
    kept = bytearray()
    while chunk := await stdout.read(LINE_BYTES):
        kept += chunk[: most - len(kept)]
    return bytes(kept)


async def _log_lines(stderr: asyncio.StreamReader, ctx: Context) -> bytes:
    """Log each line; the last of all that was written."""
    tail, rest = b"", b""
    while chunk := await stderr.read(LINE_BYTES):
        tail = (tail + chunk)[-STDERR_TAIL_BYTES:]
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            ctx.log.info("%s", line.decode("utf-8", "replace"))
    if rest:
        ctx.log.info("%s", rest.decode("utf-8", "replace"))
    return tail


async def _end(process: Process, reason: StopReason | None) -> None:
    """See that nothing of the program's group is left: by SIGTERM first where it runs, by SIGKILL then."""
    try:
        if process.returncode is None:
            signal_group(process, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(TERM_S.get(reason or "lost", 0.1)):
                    await exited(process)
    finally:
        await kill_group(process)


def command_task(
    name: str, argv: Sequence[str], *, cwd: Path | str | None = None, env: Mapping[str, str] | None = None,
    memory_bytes: int | None = None, cpu_s: int | None = None, fatal_exit_codes: Collection[int] = (),
    prints: Printed = "json", concurrency: int | None = None, options: JobOptions | None = None,
) -> Task[..., Any]:  # fmt: skip
    """Make a program the handler of the job type ``name``.

    It gets the payload as JSON on stdin and ``PENSTOCK_JOB``, ``PENSTOCK_ATTEMPT``, ``PENSTOCK_FENCE`` and the like in
    its environment. With exit code 0 what it printed is the result; with another the attempt has failed, with code
    ``exit_<code>`` or ``signal_<NAME>``, and the end of its stderr among the error's details. Lines of stderr are
    logged as they come.

    Args:
        argv: the program and its arguments; no shell reads them.
        cwd: where it runs; the worker's folder if not given.
        env: added to the worker's environment.
        memory_bytes: most address space of each of its processes (RLIMIT_AS).
        cpu_s: most processor time of each of its processes (RLIMIT_CPU), seconds.
        fatal_exit_codes: after these no other attempt is made; nor after 127, no such program.
        prints: ``json``: nothing, or a JSON value; ``text``: anything.
        concurrency: how many of its jobs a worker runs at once.
        options: as those of :func:`penstock.workers.task.task`, for jobs enqueued by the task.

    Raises:
        TaskInvalid: no program, or a limit that is none.
    """
    if not argv or not argv[0]:
        raise TaskInvalid(f"{name}: there is no program to run")
    if prints not in ("json", "text"):
        raise TaskInvalid(f"{name}: prints is json or text")
    command = _Command(
        list(argv), cwd=None if cwd is None else Path(cwd), env=env or {},
        limits=_limits(name, memory_bytes, cpu_s), fatal_exit_codes=fatal_exit_codes, prints=prints,
    )  # fmt: skip

    async def run(payload: Any, ctx: Context) -> Any:
        return await command.run(payload, ctx)

    run.__doc__ = f"Runs {shlex.join(argv)}."
    return Task(run, name, dict(options or {}), concurrency=concurrency)


def _limits(name: str, memory_bytes: int | None, cpu_s: int | None) -> list[str]:
    """What to put before a program so that it runs under limits; a shell sets them, and becomes the program."""
    limits: list[str] = []
    for option, limit in (("-v", None if memory_bytes is None else memory_bytes // 1024), ("-t", cpu_s)):
        if limit is not None:
            if limit < 1:
                raise TaskInvalid(f"{name}: a limit is at least 1 (KiB of memory, second of processor time)")
            limits.append(f"ulimit {option} {limit}")
    return ["/bin/sh", "-c", " && ".join([*limits, 'exec "$@"']), "sh"] if limits else []


_COMMAND = re.compile(r"(?P<type>[^=\s]+)=(?P<argv>.+)", re.DOTALL)


def parse_commands(texts: Iterable[str]) -> list[AnyTask]:
    """Tasks of ``TYPE=PROGRAM ARGUMENT ...``, quoted as for a shell.

    Raises:
        TaskInvalid: it is not of this form.
    """
    found: list[AnyTask] = []
    for text in texts:
        match = _COMMAND.fullmatch(text.strip())
        try:
            argv = shlex.split(match["argv"]) if match else []
        except ValueError as error:
            raise TaskInvalid(f"{text!r}: {error}") from error
        if match is None or not argv:
            raise TaskInvalid(f"{text!r} is not TYPE=PROGRAM ARGUMENT ...")
        found.append(command_task(match["type"], argv))
    return found
