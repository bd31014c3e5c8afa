"""The peers: each a program of its own that enqueues, a worker, and the server that it stands on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.installing import GO_PROGRAM, HERE, NODE, PEER_BIN, PEER_PYTHON
from benchmarks.servers import Postgres, Redis
from benchmarks.system import System, Wrong

TASK_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0
THREADS_IN_WORKER = 8


class Peer(System):
    """A queue that is driven through its program; see `peers/README.md` for what one must understand."""

    runs_once = False
    program: ClassVar[Sequence[str]]
    worker: ClassVar[Sequence[str]]
    server_type: ClassVar[type[Redis | Postgres]]
    needs: ClassVar[Sequence[str]]
    """Steps of the set-up."""

    def __init__(self, server: Redis | Postgres) -> None:
        super().__init__()
        self.server = server
        self._worker: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "BENCH_URL": self.server.url,
            "BENCH_TALLY": str(self.tally),
            "PYTHONPATH": str(HERE.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.settings,
        }

    @property
    def settings(self) -> dict[str, str]:
        """Environment beside the common one."""
        return {}

    def _do(self, *arguments: object) -> dict[str, Any]:
        command = [*self.program, *(str(argument) for argument in arguments)]
        done = subprocess.run(
            command,
            cwd=HERE.parent,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=TASK_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise Wrong(f"{self.name} {arguments} ended with {done.returncode}:\n{done.stderr[-2_000:]}")
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}

    def version(self) -> str:
        server = f"{type(self.server).__name__} {self.server.version()}".replace("Postgres ", "PostgreSQL ")
        return f"{self._do('version')['version'].removeprefix('v')} on {server}"

    def bulk(self, jobs: int, kind: str) -> float:
        seconds = self._do("bulk", jobs, kind)["seconds"]
        self._check_waiting(jobs)
        return seconds

    def one(self, seconds: float, in_flight: int) -> dict[str, Any]:
        found = self._do("one", seconds, in_flight)
        self._check_waiting(found["sent"])
        return found

    def pace(self, per_s: float, seconds: float, lanes: int) -> dict[str, Any]:
        return self._do("pace", per_s, seconds, lanes)

    def _check_waiting(self, jobs: int) -> None:
        if (waiting := self.unfinished(jobs)) != jobs:
            raise Wrong(f"{self.name}: {waiting} jobs wait, and {jobs} were enqueued")

    def start_worker(self) -> None:
        assert self._worker is None
        self._output.seek(0)
        self._output.truncate()
        self._worker = subprocess.Popen(
            self.worker,
            cwd=HERE.parent,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def ran(self) -> int:
        if self._worker is not None and self._worker.poll() is not None:
            raise Wrong(f"{self.name}'s worker ended by itself:\n{self._tail()}")
        return super().ran()

    def _tail(self) -> str:
        self._output.seek(max(0, self._output.seek(0, 2) - 3_000))
        return self._output.read().decode(errors="replace")

    def stop_worker(self) -> None:
        """Its whole group is ended if it does not end itself in time: some have children."""
        if self._worker is None:
            return
        self._worker.send_signal(signal.SIGTERM)
        try:
            self._worker.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()
        self._worker = None

    def close(self) -> None:
        self.stop_worker()
        self._output.close()
        super().close()

    @abstractmethod
    def unfinished(self, jobs: int) -> int: ...


class OnRedis(Peer):
    """A peer on a Redis that it has to itself while it is measured."""

    server: Redis
    server_type = Redis
    needs = ("redis", "python")

    def clear(self) -> None:
        self.server.clear()


def _python(module: str) -> Sequence[str]:
    return (str(PEER_PYTHON), "-m", f"benchmarks.peers.python.{module}")


class Dramatiq(OnRedis):
    name = "Dramatiq"
    program = _python("dramatiq_peer")
    worker = (
        str(PEER_BIN / "dramatiq"),
        "benchmarks.peers.python.dramatiq_peer",
        "--processes",
        "1",
        "--threads",
        str(THREADS_IN_WORKER),
    )

    def unfinished(self, jobs: int) -> int:
        # An acknowledgement deletes the message; a failed one waits in the queue for delayed ones.
        return sum(self.server.call("HLEN", f"dramatiq:{queue}.msgs") for queue in ("default", "default.DQ"))


UNFINISHED_STATES = "'available', 'pending', 'retryable', 'running', 'scheduled', 'cancelled', 'discarded'"
"""All but ``completed``: no job may end in the last two."""


class River(Peer):
    name = "River"
    server: Postgres
    server_type = Postgres
    needs = ("postgres", "go")
    program = (str(GO_PROGRAM), "river")
    worker = (str(GO_PROGRAM), "river", "work", "1000")

    def __init__(self, server: Postgres) -> None:
        super().__init__(server)
        self._do("migrate")

    def clear(self) -> None:
        self.server.do("truncate river_job")
        self.server.do("checkpoint")

    def unfinished(self, jobs: int) -> int:
        # By the states that there are, for which there is an index: the table is large, and asked often.
        return int(self.server.ask(f"select count(*) from river_job where state in ({UNFINISHED_STATES})"))


class Saq(OnRedis):
    name = "SAQ"
    program = _python("saq_peer")
    worker = (str(PEER_BIN / "saq"), "benchmarks.peers.python.saq_peer.settings", "--quiet")

    def unfinished(self, jobs: int) -> int:
        return self.server.call("ZCARD", "saq:default:incomplete")


class Taskiq(OnRedis):
    name = "taskiq"
    program = _python("taskiq_peer")
    worker = (
        *(str(PEER_BIN / "taskiq"), "worker", "benchmarks.peers.python.taskiq_peer:broker"),
        *("--workers", "1", "--max-async-tasks", "100", "--max-prefetch", "100"),
        *("--log-level", "CRITICAL", "--ack-type", "when_executed"),
    )

    def unfinished(self, jobs: int) -> int:
        """Neither delivered and not acknowledged, nor still to be delivered."""
        groups = self.server.call("XINFO", "GROUPS", "taskiq")
        group = dict(zip(groups[0][::2], groups[0][1::2], strict=True))
        return group["pending"] + group["lag"]


class CeleryPeer(OnRedis):
    name = "Celery"
    program = _python("celery_peer")
    worker = (
        *(str(PEER_BIN / "celery"), "--app", "benchmarks.peers.python.celery_peer", "worker"),
        *("--pool", "prefork", "--concurrency", str(os.cpu_count() or 1)),
        *("--without-gossip", "--without-mingle", "--loglevel", "CRITICAL"),
    )

    def unfinished(self, jobs: int) -> int:
        return self.server.call("LLEN", "celery") + self.server.call("HLEN", "unacked")


class Asynq(OnRedis):
    name = "asynq"
    needs = ("redis", "go")
    program = (str(GO_PROGRAM), "asynq")
    worker = (*program, "work", "100")

    def unfinished(self, jobs: int) -> int:
        key = "asynq:{default}:"
        lists = sum(self.server.call("LLEN", key + name) for name in ("pending", "active"))
        return lists + sum(self.server.call("ZCARD", key + name) for name in ("scheduled", "retry"))


class BullMQ(OnRedis):
    name = "BullMQ"
    needs = ("redis", "node")
    program = ("node", str(HERE / "peers/node/bullmq.js"))
    worker = (*program, "work", "100")

    @property
    def settings(self) -> dict[str, str]:
        return {"BENCH_MODULES": str(NODE), "NODE_ENV": "production"}

    def unfinished(self, jobs: int) -> int:
        lists = sum(self.server.call("LLEN", f"bull:bench:{name}") for name in ("wait", "active"))
        return lists + self.server.call("ZCARD", "bull:bench:delayed")


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (River, Asynq, BullMQ, Dramatiq, Saq, Taskiq, CeleryPeer)
}
