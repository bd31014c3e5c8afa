"""A real Apache Kafka broker for tests, benchmarks and people.

`Broker` is one KRaft node (broker and controller in one process) on Java 17, with its data in a temporary folder and
its ports chosen once, so that `kill()` and `start()` bring the same broker back at the same address. It can be stopped
politely, killed, or suspended: the three ways a broker goes away that the tests care about.

    with Broker() as broker:
        print(broker.bootstrap)

or, in the foreground until Ctrl-C: `python -m tests.kafka_broker`.

The broker must not outlive whoever started it, not even one that was killed with SIGKILL. A tiny shell therefore holds
the other end of a pipe: when the pipe closes, for whatever reason, it kills the broker and removes its data.
(`PR_SET_PDEATHSIG` would not do: it fires when the *thread* that started the child ends.)
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.kafka_jars import KafkaUnavailable, ensure_jars

HOST = "127.0.0.1"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
START_ATTEMPTS = 3
# Below the range from which Linux hands out ports to outgoing connections: otherwise any client's socket may sit on
# the broker's port while it is down, and the restart fails.
PORT_RANGE = range(20_000, 32_000)

#: Settings of the single node, chosen so that hundreds of partitions stay cheap; also used for a container.
BROKER_SETTINGS: Mapping[str, str] = {
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "message.max.bytes": str(8 << 20),
    # Index files are preallocated for each partition: 10 MB each by default, far too much for 300 partitions.
    "log.index.size.max.bytes": str(256 << 10),
    "log.segment.bytes": str(128 << 20),
    # 128 MB of heap by default, most of what this process gets.
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "log.cleaner.threads": "1",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "controlled.shutdown.enable": "false",
    # A node that comes back must first wait for the session of its earlier self to end (9 s by default).
    "broker.session.timeout.ms": "2500",
    "broker.heartbeat.interval.ms": "500",
}

_LOGGING = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = {folder}/server.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c - %m%n
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
"""

# $1 broker's pid, $2 its folder. `read` returns when the pipe on stdin is closed.
_REAPER = 'read -r _; kill -KILL "$1" 2>/dev/null; if [ -n "$2" ]; then sleep 0.2; rm -rf -- "$2"; fi'


class Broker:
    """One Kafka node under this process's control. Not thread-safe; `start` and `stop` block."""

    def __init__(
        self,
        *,
        overrides: Mapping[str, str] | None = None,
        heap_mb: int = 512,
        host: str = HOST,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`wrapper` is a command that runs the broker's own (`ip netns exec NAME`), `environment` comes on top."""
        self._overrides = dict(overrides or {})
        self._heap_mb = heap_mb
        self._host = host
        self._wrapper = tuple(wrapper)
        self.environment: dict[str, str] = dict(environment or {})
        self._folder: Path | None = None
        self._ports: tuple[int, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """Address for clients, `host:port`; the same after a restart. RuntimeError before the first start."""
        if self._ports is None:
            raise RuntimeError("the broker has not been started")
        return f"{self._host}:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """Process id of the running broker. RuntimeError when there is none."""
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists; a suspended broker does."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start, or start again on the same data, and return when clients are served. Raises KafkaUnavailable."""
        if self.running:
            return
        for attempt in range(1, START_ATTEMPTS + 1):
            fresh = self._folder is None
            try:
                self.begin()
                self.wait_until_served()
            except KafkaUnavailable:
                self.kill()
                if not fresh or attempt == START_ATTEMPTS:
                    raise
                self._discard_folder()  # perhaps somebody took a port meanwhile: once more, with others
            except BaseException:
                self.close()
                raise
            else:
                return

    def begin(self) -> None:
        """Start without waiting for it to serve: a node of a cluster cannot until most of them are there."""
        jars = ensure_jars()
        if self._folder is None:
            self._format(jars)
        self._launch(jars)

    def stop(self) -> None:
        """Ask the broker to end (SIGTERM), and kill it when it does not. The data stays for the next start."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def kill(self) -> None:
        """End the broker with SIGKILL, as a power failure of its machine would. The data stays."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def suspend(self) -> None:
        """Freeze the broker (SIGSTOP): connections stay open and nothing is answered any more."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended broker go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the broker and remove its data. Safe to call twice."""
        self.kill()
        self._discard_folder()

    def log_tail(self, limit: int = 3000) -> str:
        """The end of what the broker printed and logged, at most `limit` characters of each."""
        if self._folder is None:
            return ""
        files = [self._folder / name for name in ("console.log", "server.log")]
        return "\n".join(file.read_text(errors="replace")[-limit:] for file in files if file.exists())

    def _format(self, jars: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-kafka-"))
        self._ports = self._choose_ports()
        (self._folder / "log4j2.properties").write_text(
            _LOGGING.format(folder=self._folder), encoding="utf-8"
        )
        properties = self._folder / "server.properties"
        lines = [f"{key}={value}" for key, value in self._settings().items()]
        properties.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [*self._java(jars, heap_mb=128), "kafka.tools.StorageTool", "format", *self._quorum_flags]
        command += ["--cluster-id", "penstock-test-cluster0", "--config", str(properties)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        if done.returncode:
            raise KafkaUnavailable(
                f"Kafka could not format its storage:\n{(done.stdout + done.stderr)[-2000:]}"
            )

    _quorum_flags: tuple[str, ...] = ("--standalone",)

    def _choose_ports(self) -> tuple[int, int]:
        return free_ports()

    def _settings(self) -> dict[str, str]:
        assert self._ports is not None
        port, controller_port = self._ports
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://{self._host}:{port},CONTROLLER://{self._host}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self._host}:{port},CONTROLLER://{self._host}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.quorum.bootstrap.servers": f"{self._host}:{controller_port}",
            "log.dirs": f"{self._folder}/data",
            **BROKER_SETTINGS,
            **self._overrides,
        }

    def _java(self, jars: Path, *, heap_mb: int) -> list[str]:
        # The serial collector and the first compiler only: beside the tests on a few cores, a concurrent collector and
        # a compiler that takes a minute to be worth its while cost more than they save. That first one sets to work
        # early, so that a broker of some seconds behaves like one that has been up for long.
        options = [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
        options += ["-XX:CompileThresholdScaling=0.05"]
        options += [
            "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true",
            f"-Dlog4j2.configurationFile={self._folder}/log4j2.properties",
        ]
        return ["java", *options, "-cp", f"{jars}/*"]

    def _launch(self, jars: Path) -> None:
        assert self._folder is not None
        command = [
            *self._wrapper,
            *self._java(jars, heap_mb=self._heap_mb),
            "kafka.Kafka",
            str(self._folder / "server.properties"),
        ]
        with (self._folder / "console.log").open("ab") as console:
            # Its own session: Ctrl-C goes to the tests, which then stop the broker in their own order.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", _REAPER, "kafka-reaper", str(self._process.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_served(self) -> None:
        """Wait until clients are served after `begin`. Raises KafkaUnavailable."""
        assert self._ports is not None
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise KafkaUnavailable(f"Kafka ended with {self._process.returncode}:\n{self.log_tail()}")
            if serves(self.bootstrap):
                return
            time.sleep(0.05)
        raise KafkaUnavailable(f"Kafka did not serve within {START_TIMEOUT_S} s:\n{self.log_tail()}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _reap(self) -> None:
        # The reaper goes first: once the broker has been waited for, its pid may belong to somebody else.
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.wait()
            if self._reaper.stdin is not None:
                self._reaper.stdin.close()
            self._reaper = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _discard_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            self._ports = None


def serves(bootstrap: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a broker at `bootstrap` (`host:port[,host:port]`) answers a metadata request and has registered."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    host, _, port = bootstrap.split(",")[0].strip().rpartition(":")
    try:  # cheap first: the client library's own attempts are slow to give up
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except OSError:
        return False
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def free_ports() -> tuple[int, int]:
    """Two distinct ports nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORT_RANGE, 200):
            candidate = stack.enter_context(socket.socket())
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                candidate.bind((HOST, port))
                found.append(port)
            if len(found) == 2:
                return found[0], found[1]
    raise KafkaUnavailable("no free ports on the loopback interface")


def main(arguments: list[str]) -> int:
    """Run a broker in the foreground, or with `--prepare` only make sure that its jars are in the cache."""
    try:
        if arguments == ["--prepare"]:
            print(f"Kafka's jars are in {ensure_jars()}")
            return 0
        with Broker(heap_mb=int(os.environ.get("KAFKA_HEAP_MB", "512"))) as broker:
            print(broker.bootstrap, flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except KafkaUnavailable as error:
        print(f"No Kafka: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Blocked from the first moment, so that a signal during the start is seen by sigwait and nothing is left behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    sys.exit(main(sys.argv[1:]))
