"""Three real Kafka brokers that replicate to each other, each of which can be killed, suspended and brought back.

Each node is broker and controller, so two of three are also a majority of the controllers: with two gone there is
neither an in-sync majority nor anybody to elect a leader, until one is back.

    with Cluster() as cluster:
        cluster.node(2).kill()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from tests.kafka_broker import HOST, Broker, free_ports

NODES = (1, 2, 3)
REPLICATION = 3

CLUSTER_SETTINGS: Mapping[str, str] = {
    "default.replication.factor": "3",
    "offsets.topic.replication.factor": "3",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    # Kafka's own defaults: a cluster is slower to see that a broker is gone than a lone one under test needs to be.
    "broker.session.timeout.ms": "9000",
    "broker.heartbeat.interval.ms": "2000",
}


class Seat(NamedTuple):
    """Where a node runs: its address, its ports, and the command that puts a process there."""

    host: str
    ports: tuple[int, int]
    wrapper: tuple[str, ...] = ()


def loopback_seats() -> dict[int, Seat]:
    """All on this machine's loopback interface, at free ports."""
    seats: dict[int, Seat] = {}
    taken: set[int] = set()
    while len(seats) < len(NODES):
        ports = free_ports()
        if not taken & set(ports):
            taken.update(ports)
            seats[len(seats) + 1] = Seat(HOST, ports)
    return seats


class Node(Broker):
    """One of the three."""

    _quorum_flags = ()  # the voters stand in the settings

    def __init__(self, number: int, seats: Mapping[int, Seat], heap_mb: int) -> None:
        self.number = number
        self._seat = seats[number]
        voters = ",".join(f"{voter}@{seat.host}:{seat.ports[1]}" for voter, seat in seats.items())
        overrides = {"node.id": str(number), "controller.quorum.voters": voters, **CLUSTER_SETTINGS}
        super().__init__(
            overrides=overrides,
            heap_mb=heap_mb,
            host=self._seat.host,
            wrapper=self._seat.wrapper,
        )

    def _choose_ports(self) -> tuple[int, int]:
        return self._seat.ports

    def _settings(self) -> dict[str, str]:
        found = super()._settings()
        del found["controller.quorum.bootstrap.servers"]
        return found


class Cluster:
    """Three brokers; topics are replicated three times and need two in sync. Not thread-safe."""

    def __init__(self, *, seats: Mapping[int, Seat] | None = None, heap_mb: int = 384) -> None:
        places = seats or loopback_seats()
        self.nodes = [Node(number, places, heap_mb) for number in NODES]

    @property
    def bootstrap(self) -> str:
        """All three addresses."""
        return ",".join(node.bootstrap for node in self.nodes)

    def node(self, number: int) -> Node:
        """The node of this id, from 1."""
        return self.nodes[number - 1]

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start those that do not run, and return when all serve. Raises KafkaUnavailable."""
        try:
            self._each(Node.begin, [node for node in self.nodes if not node.running])
            self._each(Node.wait_until_served, self.nodes)
        except BaseException:
            self.close()
            raise

    def _each(self, work: Callable[[Node], None], nodes: Sequence[Node]) -> None:
        with ThreadPoolExecutor(len(NODES)) as threads:
            for done in [threads.submit(work, node) for node in nodes]:
                done.result()

    def leader_of(self, topic: str, partition: int) -> int:
        """Number of the node that leads a partition; -1 while nobody does."""
        from confluent_kafka.admin import AdminClient

        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        return client.list_topics(topic, timeout=20).topics[topic].partitions[partition].leader

    def close(self) -> None:
        """Kill all and remove their data. Safe to call twice."""
        for node in self.nodes:
            node.close()
