"""One Kafka broker for a whole test run, however many worker processes the run has.

The first test that needs Kafka starts a supervisor process, holding a file lock meanwhile; all others read the address
it wrote. The supervisor owns the broker and follows the process that owns the run (pytest itself, or xdist's
controller): it ends when told so at the end of the run, and also when that process is gone without a word.

Where the broker comes from, in this order: `KAFKA_BOOTSTRAP` when set; a container when a Docker engine answers;
otherwise Kafka's own jars on Java 17 (`tests.kafka_broker`).

A failure is written down as well, so that each worker does not try again for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kafka_broker import BROKER_SETTINGS, HOST, START_TIMEOUT_S, Broker, free_ports, serves
from tests.kafka_jars import FETCH_TIMEOUT_S, KAFKA_VERSION, KafkaUnavailable

CONTAINER_PORT = 9092
_ROOT = Path(__file__).resolve().parent.parent


def bootstrap_of_run(run_folder: Path, owner_pid: int) -> str:
    """Address of the run's broker, which is started if this is the first call. Raises KafkaUnavailable."""
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        if not serves(given, timeout_s=10.0):
            raise KafkaUnavailable(f"KAFKA_BOOTSTRAP={given} does not answer")
        return given
    state_file = run_folder / "kafka.json"
    with (run_folder / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not state_file.exists():
            _start_supervisor(state_file, owner_pid)
        state = json.loads(state_file.read_text(encoding="utf-8"))
    if "error" in state:
        raise KafkaUnavailable(state["error"])
    return str(state["bootstrap"])


def end_of_run(run_folder: Path) -> None:
    """Stop the run's broker and wait until it is gone, if there is one."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
        pid = int(json.loads((run_folder / "kafka.json").read_text(encoding="utf-8"))["pid"])
        supervisor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(supervisor, signal.SIGTERM)
            select.select([supervisor], [], [], 30)
        finally:
            os.close(supervisor)


def _start_supervisor(state_file: Path, owner_pid: int) -> None:
    console = state_file.with_suffix(".log")
    with console.open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.kafka_shared", str(state_file), str(owner_pid)],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + FETCH_TIMEOUT_S + 3 * START_TIMEOUT_S
    while not state_file.exists():
        if supervisor.poll() is not None and not state_file.exists():
            _write(
                state_file,
                {"error": f"Kafka's supervisor ended early:\n{console.read_text(errors='replace')}"},
            )
        elif time.monotonic() > deadline:
            supervisor.kill()
            _write(state_file, {"error": "Kafka did not start in time"})
        time.sleep(0.05)
    # It lives on, and this process does not wait for it: `end_of_run` does, perhaps in another process.
    supervisor.returncode = 0


def _write(state_file: Path, state: dict[str, object]) -> None:
    scratch = state_file.with_suffix(".part")
    scratch.write_text(json.dumps(state), encoding="utf-8")
    scratch.rename(state_file)


def docker_answers() -> bool:
    """Whether a Docker engine can be talked to from here."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=5)
    except DockerException:
        return False
    with contextlib.closing(client):
        try:
            return bool(client.ping())
        except (DockerException, OSError):
            return False


@contextmanager
def container_broker() -> Iterator[str]:
    """A broker in a container, with the same settings as `Broker`; yields its address."""
    from testcontainers.core.container import DockerContainer

    port, _ = free_ports()
    settings = {
        "node.id": "1",
        "process.roles": "broker,controller",
        "listeners": f"PLAINTEXT://:{CONTAINER_PORT},CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "controller.quorum.voters": "1@localhost:9093",
        **BROKER_SETTINGS,
    }
    container = DockerContainer(f"apache/kafka:{KAFKA_VERSION}").with_bind_ports(CONTAINER_PORT, port)
    for key, value in settings.items():
        container = container.with_env("KAFKA_" + key.upper().replace(".", "_"), value)
    with container:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not serves(f"{HOST}:{port}"):
            if time.monotonic() > deadline:
                raise KafkaUnavailable("the Kafka container did not serve in time")
            time.sleep(0.2)
        yield f"{HOST}:{port}"


@contextmanager
def _any_broker() -> Iterator[str]:
    if docker_answers():
        with container_broker() as bootstrap:
            yield bootstrap
    else:
        with Broker() as broker:
            yield broker.bootstrap


def _supervise(state_file: Path, owner_pid: int) -> None:
    stop_read, stop_write = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(stop_write, b"x"))
    try:
        owner = os.pidfd_open(owner_pid)
    except ProcessLookupError:
        return
    try:
        with _any_broker() as bootstrap:
            _write(state_file, {"bootstrap": bootstrap, "pid": os.getpid()})
            ended, _, _ = select.select([owner, stop_read], [], [])
        if owner in ended:  # it went without a word, so nobody else tidies up
            shutil.rmtree(state_file.parent, ignore_errors=True)
    except KafkaUnavailable as error:
        _write(state_file, {"error": str(error)})


if __name__ == "__main__":
    _supervise(Path(sys.argv[1]), int(sys.argv[2]))
