"""Penstock's processes under a supervisor, each with its own address, clock, disk and way to be hurt."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.acceptance.processes import PENSTOCK, ROOT, http
from tests.faults import capsule
from tests.faults.clocks import FakeClock
from tests.faults.network import Network
from tests.waiting import wait_for

RESTART_AFTER_S = 1.0
"""How long the supervisor waits before it starts again what ended by itself."""
STOP_S = 30.0


class Role:
    """One process. ``data`` is its folder, which may be a mount of its own; ``clock`` None has the machine's."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        network: Network,
        folder: Path,
        *,
        port: int,
        clock: FakeClock | None = None,
    ) -> None:
        self.name = name
        self.data = folder / name
        self.output = folder / f"{name}.log"
        self.url = f"http://{network.host(name)}:{port}"
        self.clock = clock
        self.ends: list[int] = []
        """Exit codes of all its lives that ended by themselves or were told to."""
        self._network = network
        self._arguments = tuple(arguments)
        self._environment = dict(environment)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._ended_at = 0.0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start without waiting; the supervisor keeps it running from now on."""
        self._wanted = True
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        own = {**self._environment, **(self.clock.environment if self.clock else {})}
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                # Mortal where there is no capsule. Roles are started by the main thread, which ends last.
                [*self._network.wrapper(self.name), *capsule.mortal(), *PENSTOCK, *self._arguments],
                cwd=self._folder,
                env={**inherited, "NO_COLOR": "1", "PYTHONPATH": str(ROOT), **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def tend(self) -> None:
        """What a supervisor does: start it again a moment after it ended, unless it is to be away."""
        if not self._wanted or self.running or self._process is None:
            return
        now = time.monotonic()
        if not self._ended_at:
            self._ended_at = now
            self.ends.append(self._process.returncode)
        elif now - self._ended_at > RESTART_AFTER_S:
            self._ended_at = 0.0
            self.start()

    def abandon(self) -> None:
        """Don't start it again if it ends."""
        self._wanted = False

    def kill(self) -> None:
        """SIGKILL, and it stays away until started."""
        self._wanted = False
        self.end_at_once()

    def end_at_once(self) -> None:
        """SIGKILL, from whatever state."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def suspend(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, and it stays away; the exit code. AssertionError when it does not end in time."""
        self._wanted = False
        if self._process is None:
            return 0
        if self.running:
            self._signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.end_at_once()
            raise AssertionError(f"{self.name} did not stop in {STOP_S:g} s:\n{self.tail()}") from None

    def wait_ended(self, timeout_s: float) -> int:
        """Wait until it has ended by itself; its exit code."""
        wait_for(f"{self.name} ends", lambda: not self.running, timeout_s)
        assert self._process is not None
        return self._process.returncode

    def ready(self) -> bool:
        """Whether it says that it is."""
        with contextlib.suppress(OSError):
            return self.running and http("GET", f"{self.url}/readyz", timeout_s=5).status == 200
        return False

    def said(self) -> str:
        """All that it printed in all its lives."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def tail(self, lines: int = 15) -> str:
        """The last lines that it printed."""
        return "\n".join(self.said().splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self.running, f"{self.name} is gone already:\n{self.tail()}"
        self._process.send_signal(number)
