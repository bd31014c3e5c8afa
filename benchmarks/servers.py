"""Redis and PostgreSQL on free ports, in temporary folders, as an unprivileged user; ended with the benchmark."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.waiting import free_port, wait_for

START_TIMEOUT_S = 60.0
HOST = "127.0.0.1"

#: Beside the defaults. Persistence as the comparison asks for; snapshots off, since a fork amid a round is noise.
REDIS_SETTINGS = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")

#: What anyone tunes on a machine of this size. A commit isn't waited for on the disk: Kafka's acknowledgement isn't
#: either, nor Redis's with `everysec`, so no system is measured by the disk's latency alone.
POSTGRES_SETTINGS: Mapping[str, str] = {
    "synchronous_commit": "off",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_min_messages": "error",
}


def unprivileged() -> dict[str, Any]:
    """Arguments of Popen: PostgreSQL refuses to run as root, and the others needn't."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("no unprivileged user to run the servers as")


class Server:
    """A server process with a folder of its own. ``with`` starts and ends it, and removes the folder."""

    def __init__(self) -> None:
        self.port = 0
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Any:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
        if user := unprivileged().get("user"):
            os.chown(self._folder, user, unprivileged()["group"])
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        raise NotImplementedError

    def _spawn(self, command: Sequence[str]) -> None:
        with (self._folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **unprivileged(),
            )

    def _check_alive(self) -> None:
        assert self._process is not None
        output = (self._folder / "output.log").read_text(errors="replace")[-2_000:]
        assert self._process.poll() is None, f"{type(self).__name__} ended:\n{output}"

    def close(self) -> None:
        """End it at once: SIGINT is PostgreSQL's fast shutdown; Redis takes it as well."""
        if self._process is not None:
            self._process.send_signal(2)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


class Redis(Server):
    """One Redis with its append-only file on."""

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def _start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", HOST, "--dir", str(self._folder)]
        self._spawn([*command, *REDIS_SETTINGS])
        wait_for("redis serves", self._serves, START_TIMEOUT_S)
        self._connection = socket.create_connection((HOST, self.port))
        self._answers = self._connection.makefile("rb")

    def _serves(self) -> bool:
        self._check_alive()
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
            return True
        return False

    def call(self, *words: str) -> Any:
        """One command's answer: int, str, None or a list of them. RuntimeError for an error."""
        parts = [word.encode() for word in words]
        body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._connection.sendall(b"*%d\r\n%s" % (len(parts), body))
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        if kind == b"$":
            return None if rest == b"-1" else self._answers.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        raise RuntimeError(f"redis: {line!r}")

    def clear(self) -> None:
        """Nothing is left, nor of the log."""
        self.call("FLUSHALL", "SYNC")
        self.call("BGREWRITEAOF")
        wait_for(
            "the log is rewritten", lambda: "aof_rewrite_in_progress:0" in self.call("INFO", "persistence")
        )

    def version(self) -> str:
        return next(
            line.split(":")[1]
            for line in self.call("INFO", "server").split("\r\n")
            if "redis_version" in line
        )

    def close(self) -> None:
        for name in ("_answers", "_connection"):
            if hasattr(self, name):
                getattr(self, name).close()
        super().close()


def postgres_folder() -> Path | None:
    """Where PostgreSQL's programs are; None when it isn't installed. Debian has them out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Postgres(Server):
    """One PostgreSQL cluster with one database, trusted connections, and a console for questions."""

    @property
    def url(self) -> str:
        return f"postgres://bench@{HOST}:{self.port}/postgres?sslmode=disable"

    def _start(self) -> None:
        programs = postgres_folder()
        assert programs is not None, "PostgreSQL is not installed"
        data = self._folder / "data"
        command = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "bench",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=False, **unprivileged()
        )
        assert done.returncode == 0, done.stderr
        command = [
            str(programs / "postgres"),
            "-D",
            str(data),
            "-p",
            str(self.port),
            "-h",
            HOST,
            "-k",
            str(self._folder),
        ]
        for name, value in POSTGRES_SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        self._spawn(command)
        ready = [str(programs / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(ready, check=False).returncode:
            self._check_alive()
            assert time.monotonic() < deadline, "PostgreSQL does not serve"
            time.sleep(0.1)
        self._console = subprocess.Popen(
            [str(programs / "psql"), "-AtqX", "-v", "ON_ERROR_STOP=1", self.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, query: str) -> str:
        """The one value that a query yields."""
        assert self._console.stdin is not None
        assert self._console.stdout is not None
        self._console.stdin.write(query.rstrip("; ") + ";\n")
        self._console.stdin.flush()
        answer = self._console.stdout.readline()
        assert answer.endswith("\n"), f"psql ended at: {query}"
        return answer.strip()

    def do(self, statement: str) -> None:
        """A statement that yields nothing."""
        assert self.ask(f"{statement}; select 'done'") == "done", statement

    def version(self) -> str:
        return self.ask("show server_version").split()[0]

    def close(self) -> None:
        if hasattr(self, "_console"):
            assert self._console.stdin is not None
            self._console.stdin.close()
            self._console.wait()
            assert self._console.stdout is not None
            self._console.stdout.close()
        super().close()
