"""Running roles: start them in order, wait, stop them in reverse order within a deadline.

A role is a service: an async context manager with a ``failure`` future, which gets the exception that ended it. One
that fails ends the process: nothing limps on without a part of itself, and whoever supervises the process sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.cli import leaving
from penstock.schemas.errors import PenstockError

log = logging.getLogger("penstock.roles")

STOP_DEADLINE_S = 20.0
"""How long stopping may take, beyond the time that handlers are given."""

FORCED = 130
SAME_SIGNAL_S = 0.5
"""A second signal this soon is the first one once more: terminals and wrappers both send it on."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Service(Protocol):
    """What :func:`run_roles` needs of a started role."""

    @property
    def failure(self) -> asyncio.Future[Any]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a role that has a failure of its own."""

    failure: asyncio.Future[Any]


Compose = Callable[[AsyncExitStack], Awaitable[Sequence[Service]]]
"""Starts roles on the stack, in order, and returns those whose failure matters."""


class StopTimedOut(PenstockError):
    """The process did not stop in time."""


def run(compose: Compose, *, on_ready: Callable[[], None] | None = None, grace_ms: int = 0) -> None:
    """Run roles until SIGINT, SIGTERM or the first failure.

    Args:
        on_ready: called once all have started.
        grace_ms: how long handlers may go on at the end.

    Raises:
        PenstockError: why a role failed.
        StopTimedOut: stopping took 20 s longer than that.
    """
    deadline_s = STOP_DEADLINE_S + grace_ms / 1_000
    # Not entered as a context: leaving that waits for all that runs, however long.
    runner = asyncio.Runner(loop_factory=_loop_factory())
    try:
        runner.run(run_roles(compose, on_ready=on_ready, stop_deadline_s=deadline_s))
    finally:
        if runner.run(leaving.clear()):
            runner.close()
            if not leaving.threads_end():
                leaving.leave_behind()
        else:
            leaving.leave_behind()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def run_roles(
    compose: Compose, *, on_ready: Callable[[], None] | None = None, stop_deadline_s: float = STOP_DEADLINE_S
) -> None:
    """As :func:`run`, in a running loop."""
    stopping = asyncio.Event()
    started = asyncio.Event()
    living = asyncio.create_task(_live(compose, on_ready, started, stopping), name="roles")
    with _signals(stopping):
        wanted = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({living, wanted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
        if not living.done():
            log.info("stopping")
            if not started.is_set():
                # Nothing runs yet that could be left in good order.
                living.cancel()
            await asyncio.wait({living}, timeout=stop_deadline_s)
        if not living.done():
            raise StopTimedOut(f"The process did not stop within {stop_deadline_s:g} s.")
    try:
        living.result()
    except asyncio.CancelledError as error:
        # Meant where it was told to stop; else some library let its own out, and that is no orderly end.
        if not stopping.is_set():
            raise PenstockError("The process ended, although nobody had asked it to.") from error


async def _live(
    compose: Compose, on_ready: Callable[[], None] | None, started: asyncio.Event, stopping: asyncio.Event
) -> None:
    services: Sequence[Service] = ()
    try:
        async with AsyncExitStack() as stack:
            services = await compose(stack)
            started.set()
            _spare_the_collector()
            if on_ready is not None:
                on_ready()
            wanted = asyncio.create_task(stopping.wait())
            try:
                ends = [service.failure for service in services]
                await asyncio.wait([wanted, *ends], return_when=asyncio.FIRST_COMPLETED)
            finally:
                wanted.cancel()
            for service in services:
                _raise_failure(service)
    finally:
        for service in services:
            # Looked at, so that a failure while stopping is not reported a second time by the loop.
            if service.failure.done() and not service.failure.cancelled():
                service.failure.exception()


def _spare_the_collector() -> None:
    """What is loaded by now stays;

    and jobs are no cycles, so the collector need not look at each few hundred of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def request_stop() -> None:
    """Stop this process in good order, as if it had been told to from outside."""
    signal.raise_signal(signal.SIGTERM)


def _raise_failure(service: Service) -> None:
    failure = service.failure
    if not failure.done():
        return
    name = type(service).__name__
    error = None if failure.cancelled() else failure.exception()
    if error is None:
        raise PenstockError(f"{name} ended by itself.")
    if not isinstance(error, PenstockError):
        log.critical("%s failed", name, exc_info=error)
        raise PenstockError(f"{name} failed: {type(error).__name__}: {error}") from error
    log.critical("%s failed: %s", name, error.message)
    raise error


class _signals(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a verb where it is used
    """The first signal asks to stop; the second one ends the process at once."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._first_s = 0.0

    def __enter__(self) -> None:
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number in STOP_SIGNALS:
            self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            if self._loop.time() - self._first_s < SAME_SIGNAL_S:
                return
            sys.stderr.write(
                "penstock: stopped at once; what was running is taken up again after the next start\n"
            )
            sys.stderr.flush()
            os._exit(FORCED)
        self._first_s = self._loop.time()
        self._stopping.set()
        sys.stderr.write("penstock: stopping (once more to stop at once)\n")
        sys.stderr.flush()
