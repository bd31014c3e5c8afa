"""Starting, killing and stopping the demonstration's processes, and running `penstock` commands."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from penstock.client.http import Client
from penstock.schemas.errors import PenstockError

PENSTOCK = (sys.executable, "-m", "penstock.cli.main")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class DemoFailed(Exception):
    """Something did not go as promised; the message says what."""


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """The demonstration's processes. Leaving it stops them, whatever happened."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        # The newest first: workers give back what they hold while the server is still there.
        for name, process in reversed(self._running):
            self._stop(name, process)
        self._running.clear()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``penstock`` with these arguments; what it prints goes to ``<name>.log``."""
        with (self._folder / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [*PENSTOCK, *arguments],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Out of reach of a Ctrl-C on the terminal: the server must not be gone before its workers.
                process_group=0,
            )
        self._running.append((name, process))
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL: the process gets no chance to say good-bye."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._running = [entry for entry in self._running if entry[1] is not process]

    def check(self) -> None:
        """Raise DemoFailed if a process ended by itself."""
        for name, process in self._running:
            if process.poll() is not None:
                raise DemoFailed(f"{name} ended by itself with {process.returncode}:\n{self.log_tail(name)}")

    def log_tail(self, name: str) -> str:
        """The last lines that a process printed."""
        text = (self._folder / f"{name}.log").read_text(errors="replace")
        return "\n".join(f"    {line}" for line in text.splitlines()[-20:])

    def wait_ready(self, client: Client) -> None:
        """Wait until the server answers that it is ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self.check()
            try:
                client.counts()
            except PenstockError as error:
                if time.monotonic() > deadline:
                    raise DemoFailed(
                        f"the server is not ready after {START_TIMEOUT_S:.0f} s: {error}"
                    ) from error
                time.sleep(0.05)
            else:
                return

    def run(self, *arguments: str) -> str:
        """Run a ``penstock`` command to its end and return what it printed. Raises DemoFailed."""
        done = subprocess.run(
            [*PENSTOCK, *arguments],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(
                f"`{shown(arguments)}` exited with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def _stop(self, name: str, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"{name} does not stop; killing it", file=sys.stderr)
            process.kill()
            process.wait()


def shown(arguments: Sequence[str]) -> str:
    """A command as one would type it."""
    return f"penstock {shlex.join(arguments)}"
