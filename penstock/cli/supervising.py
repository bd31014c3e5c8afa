"""Several worker processes under one that watches: as many as there is work for, within bounds.

The parent opens no log and runs no handler. It forks children before anything else is loaded, so that each is there in
a moment; each tells its load through a pipe, five times a second. One that ends unasked is started again, one whose
parent is gone stops by itself. Where the first ones cannot start (a wrong setting, a log that is not there) all ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from penstock.cli.roles import FORCED, SAME_SIGNAL_S, STOP_DEADLINE_S, STOP_SIGNALS, request_stop
from penstock.cli.settings import Settings
from penstock.schemas.errors import PenstockError
from penstock.workers.scaling import Load, Scaling, bounds_of

if TYPE_CHECKING:
    from penstock.workers.runtime import Worker

TELL_EVERY_S = 0.2
LOOK_EVERY_S = 0.1
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LIVED_S = 60.0
"""A child that ran for so long is started again at once."""

_log = logging.getLogger("penstock.supervisor")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Load).decode


class ChildFailed(PenstockError):
    """A worker process cannot start."""


@dataclass(frozen=True, slots=True)
class Tie:
    """A child's ends of the pipes to its parent."""

    load_fd: int
    life_fd: int
    """At its end when the parent is gone."""


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    load_fd: int
    life_fd: int
    started_s: float
    rest: bytes = b""
    load: Load | None = None
    leaving: bool = False


@dataclass(slots=True)
class _Slot:
    """A place for a child; what is known of those that were there."""

    pause_s: float = 0.0
    not_before_s: float = 0.0


def supervise(settings: Settings, run_child: Callable[[Settings, Tie], None]) -> None:
    """Keep as many processes as ``settings.processes`` and the work want, until told to stop.

    Returns in a child too, once ``run_child`` has returned there.

    Raises:
        ChildFailed: a child cannot start; its own message was printed.
    """
    with _Supervisor(settings) as supervisor:
        tie = supervisor.run()
    if tie is not None:
        run_child(supervisor.child_settings, tie)


class _Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bounds = bounds_of(settings.processes)
        self._scaling = Scaling(self._bounds)
        self._children: dict[int, _Child] = {}
        """By the number of their slot, from 1."""
        self._slots: dict[int, _Slot] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._stopping_s: float | None = None
        self._before: dict[int, object] = {}
        self._failed: int | None = None
        self._ran = False
        self.child_settings = settings

    def __enter__(self) -> Self:
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]  # as it was given
        for child in self._children.values():
            os.close(child.load_fd)
            os.close(child.life_fd)
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def run(self) -> Tie | None:
        """Supervise to the end, in the parent; in a child, what ties it to its parent."""
        while True:
            self._reap()
            if self._stopping_s is not None and not self._children:
                break
            if self._stopping_s is None:
                tie = self._scale()
                if tie is not None:
                    return tie
            else:
                self._hurry()
            for key, _ in self._selector.select(LOOK_EVERY_S):
                self._read(key)
        if self._failed:
            raise ChildFailed(f"a worker process could not start, and ended with exit code {self._failed}")
        return None

    # Children

    def _scale(self) -> Tie | None:
        now_s = time.monotonic()
        staying = {number: child for number, child in self._children.items() if not child.leaving}
        loads = [(number, child.load) for number, child in sorted(staying.items())]
        wanted = self._scaling.wanted(loads, now_s * 1_000)
        if wanted < len(staying):
            self._leave(staying[max(staying)], f"{wanted} are enough")
        for _ in range(wanted - len(staying)):
            number = next(
                n for n in range(1, self._bounds.most + len(staying) + 2) if n not in self._children
            )
            slot = self._slots.setdefault(number, _Slot())
            if now_s < slot.not_before_s:
                continue
            tie = self._start(number)
            if tie is not None:
                return tie
        return None

    def _start(self, number: int) -> Tie | None:
        load_fd, load_end = os.pipe()
        life_end, life_fd = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(load_fd)
            os.close(life_fd)
            name = self._settings.name and f"{self._settings.name}-{number}"
            port = self._settings.health_port and self._settings.health_port + number - 1
            self.child_settings = self._settings.model_copy(update={"name": name, "health_port": port})
            return Tie(load_end, life_end)
        os.close(load_end)
        os.close(life_end)
        os.set_blocking(load_fd, False)
        child = _Child(number, pid, load_fd, life_fd, time.monotonic())
        self._children[number] = child
        self._selector.register(load_fd, selectors.EVENT_READ, child)
        _log.info("worker process %d started, %d run", number, len(self._children))
        return None

    def _leave(self, child: _Child, why: str) -> None:
        child.leaving = True
        _log.info("worker process %d is to leave: %s", child.number, why)
        os.kill(child.pid, signal.SIGTERM)

    def _reap(self) -> None:
        for number, child in list(self._children.items()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            self._selector.unregister(child.load_fd)
            os.close(child.load_fd)
            os.close(child.life_fd)
            del self._children[number]
            if not child.leaving and self._stopping_s is None:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        """A child has ended unasked."""
        if code > 0 and not self._ran:
            # None ever ran: another one would not either.
            self._failed = code
            self._stop()
            return
        slot = self._slots[child.number]
        lived_s = time.monotonic() - child.started_s
        slot.pause_s = (
            0.0 if lived_s >= LIVED_S else min(max(2 * slot.pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        )
        slot.not_before_s = time.monotonic() + slot.pause_s
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        _log.warning("worker process %d ended (%s), again in %.1f s", child.number, how, slot.pause_s)

    def _read(self, key: selectors.SelectorKey) -> None:
        if not isinstance(key.data, _Child):
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4_096)
            return
        child = key.data
        with contextlib.suppress(BlockingIOError):
            *lines, child.rest = (child.rest + os.read(child.load_fd, 65_536)).split(b"\n")
            if lines:
                child.load = _decode(lines[-1])
                self._ran = True

    # Stopping

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGCHLD:
            return
        now_s = time.monotonic()
        if self._stopping_s is None:
            sys.stderr.write("penstock: stopping (once more to stop at once)\n")
            self._stop()
        elif now_s - self._stopping_s >= SAME_SIGNAL_S:
            self._kill()
            os._exit(FORCED)

    def _stop(self) -> None:
        self._stopping_s = time.monotonic()
        for child in self._children.values():
            if not child.leaving:
                self._leave(child, "all are to stop")

    def _hurry(self) -> None:
        assert self._stopping_s is not None
        if time.monotonic() - self._stopping_s > STOP_DEADLINE_S + self._settings.grace_ms / 1_000 + 5:
            self._kill()

    def _kill(self) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)


class Telling:
    """In a child: tells the parent its load, and stops when there is none any more. An async context manager."""

    def __init__(self, worker: Worker, tie: Tie) -> None:
        self._worker = worker
        self._tie = tie
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        os.set_blocking(self._tie.load_fd, False)
        asyncio.get_running_loop().add_reader(self._tie.life_fd, self._orphaned)
        self._task = asyncio.create_task(self._tell(), name="tell-load")
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._tie.life_fd)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._tie.life_fd)
        _log.warning("the supervisor is gone: stopping")
        request_stop()

    async def _tell(self) -> None:
        while True:
            # A parent that is slow to read needs only what comes later.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._tie.load_fd, _encode(self._worker.load()) + b"\n")
            await asyncio.sleep(TELL_EVERY_S)
