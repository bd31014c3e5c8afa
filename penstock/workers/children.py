"""Child processes for handlers that are to be killed when they do not stop: `@task(process=True)`.

A child runs one job at a time and is kept for the next. One whose job was told to stop, or that died, is not: its whole
process group is killed, so nothing that a handler started outlives it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from penstock.schemas.codec import decode_line
from penstock.schemas.errors import LeaseLost
from penstock.schemas.events import NULL
from penstock.workers.errors import AppInvalid
from penstock.workers.groups import exited, kill_group, start_group
from penstock.workers.outcome import Done, Errored, Outcome, StopReason, job_error, outcome_of
from penstock.workers.pipes import (
    MAX_LINE_BYTES,
    Begin,
    Ended,
    Kept,
    Logged,
    Ready,
    Refused,
    Setup,
    Stop,
    ToChild,
    Told,
    decode_from_child,
    encode,
)
from penstock.workers.progress import ProgressReporter
from penstock.workers.run import Run

PATIENCE_S: Mapping[StopReason, float] = {"timeout": 0.7, "cancelled": 15.0, "shutdown": 1.5, "lost": 0.2}
"""How long a handler in a child may take to stop before its process is killed: less than a worker waits for it."""

KEPT_IDLE = os.cpu_count() or 1
"""Idle children kept."""

START_S = 60.0
"""For a child to load its modules."""

END_S = 1.0

_log = logging.getLogger(__name__)


class ChildDied(Exception):
    """The process ended and had not said how its job did."""


class Child:
    """One process. Made by :meth:`start`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._killed = False
        self.reusable = True
        """Whether it may be given another job: it waits for one, as far as is known."""

    @classmethod
    async def start(cls, setup: Setup) -> Child:
        """Raises AppInvalid when it cannot load the tasks."""
        process = await start_group(
            sys.executable, "-m", "penstock.workers.child", stdin=PIPE, stdout=PIPE, limit=MAX_LINE_BYTES,
        )  # fmt: skip
        child = cls(process)
        try:
            async with asyncio.timeout(START_S):
                await child._load(setup)
        except BaseException:
            await child.kill()
            raise
        return child

    async def _load(self, setup: Setup) -> None:
        try:
            self._send(setup)
            while True:
                match await self._receive():
                    case Ready():
                        return
                    case Refused(message):
                        raise AppInvalid(f"a child process cannot load the tasks: {message}")
                    case Logged() as logged:
                        _log_again(logged)
                    case _:
                        pass
        except ChildDied as error:
            raise AppInvalid(f"a child process cannot load the tasks: {error}") from error

    async def run(self, run: Run, reporter: ProgressReporter) -> Outcome:
        """Run a job to its end; when this is cancelled the job is stopped, by force if need be."""
        self.reusable = False
        self._send(Begin(run.lease.delivery))
        ending = asyncio.create_task(self._until_ended(run, reporter), name="penstock-child")
        try:
            outcome = await asyncio.shield(ending)
            # One that is said to have timed out may be spoken for, and go on.
            self.reusable = outcome is not None and not (
                isinstance(outcome, Errored) and outcome.error.code == "timeout"
            )
            return outcome or await self._died()
        except asyncio.CancelledError:
            outcome = await self._stopped(run, ending)
            if outcome is None:
                raise
            return outcome

    async def _stopped(self, run: Run, ending: asyncio.Task[Outcome | None]) -> Outcome | None:
        """Have the job stop; what it ended with, None if it was killed."""
        try:
            if run.stop is not None and not ending.done():
                self._send(Stop(run.lease.id, run.stop, run.stop_detail))
                await asyncio.wait([ending], timeout=PATIENCE_S[run.stop])
        finally:
            await self.kill()
        return await ending

    async def _until_ended(self, run: Run, reporter: ProgressReporter) -> Outcome | None:
        """Pass on what the child tells, until it tells its outcome; None if it dies."""
        try:
            while True:
                match await self._receive():
                    case Ended(line, result):
                        outcome = outcome_of(decode_line(bytes(line)))
                        if isinstance(outcome, Done) and len(result) > len(NULL):
                            return outcome._replace(result=bytes(cast("Any", result)))
                        return outcome
                    case Told() as told:
                        await self._keep(told, run, reporter)
                    case Logged() as logged:
                        _log_again(logged)
                    case _:
                        pass
        except ChildDied:
            return None

    async def _keep(self, told: Told, run: Run, reporter: ProgressReporter) -> None:
        checkpoint = bytes(told.checkpoint) if told.saves else None
        try:
            await reporter.report(run, told.percent, told.message, checkpoint)
        except LeaseLost as error:
            self._send(Kept(told.number, error.message))
        else:
            self._send(Kept(told.number))

    async def _died(self) -> Errored:
        code = await exited(self._process)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Errored(
            job_error(
                "process_died", f"the process of the handler ended {how}", {"exit_code": code}, retryable=True
            )
        )

    def _send(self, message: ToChild) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        # A child that is dead is found out by reading from it.
        with suppress(OSError, RuntimeError):
            stdin.write(encode(message) + b"\n")

    async def _receive(self) -> object:
        stdout = self._process.stdout
        assert stdout is not None
        line = await stdout.readline()
        if not line.endswith(b"\n"):
            raise ChildDied(f"it ended with exit code {await exited(self._process)}; see what it printed")
        return decode_from_child.decode(line)

    async def kill(self) -> None:
        """End the process and whatever it started."""
        if not self._killed:
            self._killed = True
            await kill_group(self._process)

    async def end(self) -> None:
        """Let it end by itself, for a moment."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await exited(self._process)
        except TimeoutError:
            pass
        finally:
            await self.kill()


class Children:
    """The child processes of one worker.

    Args:
        apps: what a child loads, as ``--app`` takes it.
        types: the job types that run in children.
    """

    def __init__(self, apps: Sequence[str], types: Sequence[str], reporter: ProgressReporter) -> None:
        self.types = frozenset(types)
        self._setup = Setup(
            apps=tuple(apps), types=self.types, path=tuple(sys.path), level=logging.getLogger().level
        )
        self._reporter = reporter
        self._idle: list[Child] = []

    async def open(self) -> None:
        """Start the first: what cannot be loaded shows before a job is taken. Raises AppInvalid."""
        if self.types:
            self._idle.append(await Child.start(self._setup))

    async def run(self, run: Run) -> Outcome:
        """Run a job in a child of its own."""
        child = self._idle.pop() if self._idle else await Child.start(self._setup)
        try:
            return await child.run(run, self._reporter)
        finally:
            if not child.reusable:
                await child.kill()
            elif len(self._idle) < KEPT_IDLE:
                self._idle.append(child)
            else:
                await child.end()

    async def close(self) -> None:
        """End those that are idle; the others end with the runs that they are in."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.end() for child in idle))


def _log_again(logged: Logged) -> None:
    logger = logging.getLogger(logged.logger)
    if not logger.isEnabledFor(logged.level):
        return
    record = logger.makeRecord(logged.logger, logged.level, "", 0, logged.text, (), None, extra=logged.extra)
    logger.handle(record)
