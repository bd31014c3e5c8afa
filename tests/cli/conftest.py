"""The command line run in this process, and a service to talk to."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import main as cli_main
from penstock.cli.logs import HANDLER_NAME

APP = """
import asyncio
from penstock import task, Context

@task
async def greet(name: str) -> str:
    return f"hello {name}"

@task(max_attempts=1)
def broken() -> None:
    raise ValueError("no luck")

@task
async def linger(ctx: Context) -> None:
    while not ctx.cancelled:
        await asyncio.sleep(0.01)
"""


@dataclass
class Result:
    """How a command ended. ``code`` is its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


class _Stdin:
    """Stdin with bytes, as commands read it."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture(autouse=True)
def settled_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings from outside, an empty working folder, and logging as it was."""
    for name in list(os.environ):
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    # What is not there is not there: no need to try again in each test.
    monkeypatch.setattr("penstock.cli.context.CLIENT_PATIENCE_MS", 0)
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [known for known in root.handlers if known.get_name() == HANDLER_NAME]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run `penstock` with arguments, in this process."""

    def run_command(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", _Stdin(stdin))
        capfdbinary.readouterr()
        try:
            cli_main.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        out, err = capfdbinary.readouterr()
        return Result(code, out.decode(), err.decode())

    return run_command


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {**rest, **settings}


class Dev:
    """A `penstock dev` of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.data = folder / "data"
        (folder / "handlers.py").write_text(APP)
        # A file and no pipe: a full pipe that nobody reads would stop the service.
        self.errors = folder / "stderr.txt"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock.cli.main", "dev", "--data", self.data, "--port", "0", *arguments],
                cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(PENSTOCK_GRACE_MS="200"),
            )  # fmt: skip
        self.server = ""
        assert self.process.stdout is not None
        self.greeting = ""
        for line in self.process.stdout:
            self.greeting += line
            if line.startswith("  API"):
                self.server = line.split()[1].removesuffix("/api/v1")
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(f"dev did not start: {self.errors.read_text()}")

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Exit code and stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=40)
        return self.process.returncode, self.errors.read_text()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A service for the tests of a module."""
    service = Dev(tmp_path_factory.mktemp("dev"), "--app", "handlers")
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture
def ask(run: Run, dev: Dev) -> Run:
    """Run a command that asks the module's service."""

    def run_command(*arguments: object, stdin: bytes = b"") -> Result:
        return run("--server", dev.server, *arguments, stdin=stdin)

    return run_command
