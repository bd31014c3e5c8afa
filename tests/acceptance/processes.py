"""Penstock's processes as people start them: `penstock ...` with flags and environment, watched and always ended.

Coverage of the processes is measured when the suite runs under coverage (its `patch = subprocess`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from penstock.cli.main import app
from tests.waiting import free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
TASKS = Path(__file__).resolve().parent / "tasks.py"
PENSTOCK = (sys.executable, "-m", "penstock.cli.main")
READY_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 20.0


class Answer:
    """An HTTP answer: status, headers, and the body as text or JSON."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(
    method: str, url: str, body: Any = None, timeout_s: float = 15.0, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request; errors of HTTP are answers, OSError when nobody answers."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return Answer(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


class Role:
    """One ``penstock`` process that can be killed and started again with the same command and environment."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        ready_url: str = "",
    ) -> None:
        self.name = name
        self.arguments = tuple(arguments)
        self.environment = dict(environment)
        self.ready_url = ready_url
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """File with all that the process printed."""
        return self._folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Role:
        """Start without waiting."""
        assert not self.running, f"{self.name} runs already"
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*PENSTOCK, *self.arguments],
                cwd=self._folder,
                env=_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> Role:
        """Wait until the role says that it is ready."""
        wait_for(f"{self.name} is ready", self._is_ready, timeout_s)
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.tail()}"
        with contextlib.suppress(OSError):
            return not self.ready_url or http("GET", self.ready_url, timeout_s=5).status == 200
        return False

    def kill(self) -> None:
        """SIGKILL, as a power failure would."""
        assert self._process is not None
        assert self.running, f"{self.name} is gone already:\n{self.tail()}"
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code. AssertionError when it does not end."""
        assert self._process is not None
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(
                f"{self.name} did not stop within {STOP_TIMEOUT_S:g} s:\n{self.tail()}"
            ) from None

    def close(self) -> None:
        """End it whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """The last lines that it printed."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


class Stack:
    """A set of roles in a folder. Leaving it ends them all, the last started first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roles: dict[str, Role] = {}

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        for role in reversed(self.roles.values()):
            role.close()

    def __getitem__(self, name: str) -> Role:
        return self.roles[name]

    def add(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        ready_url: str = "",
    ) -> Role:
        """A role, not started yet."""
        role = self.roles[name] = Role(name, arguments, environment or {}, self.folder, ready_url)
        return role

    def add_kafka_roles(
        self,
        bootstrap: str,
        namespace: str,
        *,
        partitions: int = 4,
        orchestrators: int = 2,
        nodes: int = 0,
        shares: int = 1,
        app: Path = TASKS,
    ) -> str:
        """Orchestrators and a projection (or nodes, where there are any), an API and a worker on the log itself.

        The partitions are dealt out in ``shares`` parts, and nodes take these by turns. Returns the API's address.
        """
        port = free_port()
        shared = {
            "PENSTOCK_LOG": f"kafka://{bootstrap}",
            "PENSTOCK_NAMESPACE": namespace,
            "PENSTOCK_PARTITIONS": str(partitions),
            "PENSTOCK_WORK_PARTITIONS": "8",
        }

        def add(name: str, *arguments: str, **own: str) -> None:
            health = free_port()
            settings = {**shared, "PENSTOCK_DATA": str(self.folder / name), "PENSTOCK_NAME": name}
            settings |= {"PENSTOCK_HEALTH_PORT": str(health), **own}
            self.add(name, arguments, settings, f"http://127.0.0.1:{health}/readyz")

        for number in range(nodes):
            share = f"{number % shares + 1}/{shares}"
            address = f"127.0.0.1:{free_port()}"
            add(f"node-{number}", "node", PENSTOCK_PROJECTION_ADDRESS=address, PENSTOCK_SHARE=share)
        if not nodes:
            for number in range(orchestrators):
                add(f"orchestrator-{number}", "orchestrator")
            add("projection", "projection", PENSTOCK_PROJECTION_ADDRESS=f"127.0.0.1:{free_port()}")
        settings = {**shared, "PENSTOCK_DATA": str(self.folder / "api"), "PENSTOCK_NAME": "api"}
        self.add("api", ("api", "--port", str(port)), settings, f"http://127.0.0.1:{port}/readyz")
        add("worker", "worker", "--app", str(app))
        return f"http://127.0.0.1:{port}"

    def start(self) -> Stack:
        """Start all, then wait until all are ready."""
        for role in self.roles.values():
            role.start()
        for role in self.roles.values():
            role.wait_ready()
        return self

    def tails(self) -> str:
        """What every role printed last, for a failure's message."""
        return "\n".join(
            f"--- {name}\n{role.tail(12)}" for name, role in self.roles.items() if role.output.exists()
        )


def penstock(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*PENSTOCK, *arguments],
        cwd=folder,
        env=_environment(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def penstock_json(*arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> Any:
    """What a command prints with ``--output json``; AssertionError unless it exits with 0."""
    done = penstock(*arguments, "--output", "json", folder=folder, environment=environment)
    assert done.returncode == 0, (
        f"{arguments} exited with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return json.loads(done.stdout)


def understood(arguments: list[str]) -> bool:
    """Whether the command line knows this command and all its flags: help is asked for once they have been read."""
    result = CliRunner().invoke(app, [*arguments, "--help"])
    return result.exit_code == 0 and (not arguments or arguments[0] in result.output)


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of Penstock's that somebody may have set, and ``own``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {**inherited, "NO_COLOR": "1", **own}
