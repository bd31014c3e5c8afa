"""Hints between processes: deliveries on the work topics, signals to workers, and what workers tell.

None of these is truth: each may be lost, doubled or late without harm. A record's value is one JSON line a
message, like on the jobs log. Times are Unix ms, durations ms.

Topics (``<ns>`` is the namespace): ``<ns>.work.<priority>`` carries :class:`Delivery`; ``<ns>.signals``
carries :data:`Signal`, partition 0 to everybody, the others to the workers and gateways whose ``route`` they
are; ``<ns>.workers`` carries :data:`Report`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

NULL = Raw(b"null")


class Delivery(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A leased job on its way to its holder, with all that is needed to run it.

    ``partition`` is where its outcome is to be written; ``fence`` the decimal fencing token; ``sealed`` as on
    the event.
    """

    worker: str
    incarnation: str = ""
    via: str = ""
    partition: int
    job: str
    tenant: str = "default"
    job_type: str
    queue: str
    priority: str = "normal"
    attempt: int
    max_attempts: int
    lease: str
    lease_ms: int
    fence: str
    timeout_ms: int = 0
    payload: Raw = NULL
    checkpoint: Raw = NULL
    metadata: Raw = NULL
    enqueued_at: int = 0
    leased_at: int = 0
    trace: str = ""
    rules: int = 1
    """Version that the job's partition follows: what an outcome may say depends on it."""


# What workers tell


class Holding(Struct, frozen=True, array_like=True):
    """A lease that a worker holds. ``run_ms`` is the time its handler has run, 0 while it waits to start."""

    partition: int
    job_key: str
    lease: str
    run_ms: int = 0


class Heartbeat(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """One heartbeat for everything a worker holds; goes out at an interval and at once on change.

    ``credits`` is how many leases each orchestrator (by incarnation) may let this worker hold at once; an
    orchestrator that is not named has none. ``seq`` grows with every heartbeat of an incarnation. ``route``
    is the partition of the work and signals topics that reaches the worker. ``leaving`` true: it takes no
    more and may be forgotten once it holds nothing. ``draining`` true: it takes no more, told so by somebody,
    and is still there (one that speaks HTTP, of which only its client knows when it leaves).
    """

    worker: str
    incarnation: str = ""
    via: str = ""
    """Incarnation of the gateway that speaks for the worker, if one does."""
    seq: int
    pool: str = "default"
    types: tuple[str, ...] = ()
    concurrency: int = 1
    credits: dict[str, int] = {}
    limits: dict[str, dict[str, int]] = {}
    """By job type, for those that the worker runs fewer of at once: how many leases of it each orchestrator may let the
    worker hold, as ``credits`` says of all."""
    route: int = 1
    holding: tuple[Holding, ...] = ()
    """Every lease held, in a full heartbeat; empty in a partial one."""
    partial: bool = False
    """Sent on change only to tell of credits: says nothing of leases, renews none and counts for no redelivery."""
    lease_ms: int = 30_000
    """How long a lease the worker wants."""
    leaving: bool = False
    draining: bool = False
    host: str = ""
    version: str = ""
    busy: int = 0
    """Handlers running now."""
    at: int = 0

    @property
    def takes_more(self) -> bool:
        """Whether the worker still takes jobs."""
        return not (self.leaving or self.draining)


class Echo(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """An orchestrator's own mark on a partition of the workers topic.

    While it reads its marks back, it hears heartbeats.
    """

    orchestrator: str
    incarnation: str
    at: int


Report = Heartbeat | Echo


# Signals


class Beat(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Broadcast: an orchestrator is alive, leads these partitions (with their epochs), and has this backlog.

    ``backlog`` maps ``pool/job_type`` to ready jobs. ``caught_up`` lists the partitions it has folded to
    their end and could lead.
    """

    orchestrator: str
    incarnation: str
    leads: dict[int, int] = {}
    caught_up: tuple[int, ...] = ()
    backlog: dict[str, int] = {}
    leaving: bool = False
    at: int = 0
    rules: int = 1
    """The highest version of the rules that this program has."""
    active_rules: dict[int, int] = {}
    """Version in force, by partition that it leads."""


class Serving(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Broadcast: a projection process answers reads for these partitions (with the next offset each will fold)."""

    projection: str
    incarnation: str
    address: str
    """``host:port`` of its query protocol."""
    partitions: dict[int, int] = {}
    leaving: bool = False
    at: int = 0
    rules: int = 1
    """The highest version of the rules that this program has."""


class Acknowledged(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """To a worker: the orchestrator has seen its heartbeat ``seq``.

    It holds ``outstanding`` leases of it, proposed ones included; ``limited``: of the job types that its heartbeat
    has limits for.
    """

    worker: str
    incarnation: str = ""
    via: str = ""
    orchestrator: str
    orchestrator_incarnation: str
    seq: int
    outstanding: int
    limited: dict[str, int] = {}


class CancelJob(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """To a worker: stop this job, its cancel was requested. Repeated at every heartbeat that names the lease."""

    worker: str
    incarnation: str = ""
    via: str = ""
    job: str
    tenant: str = "default"
    lease: str
    reason: str = ""


class LeaseGone(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """To a worker: it no longer holds this lease and must stop; its outcome will be refused."""

    worker: str
    incarnation: str = ""
    via: str = ""
    job: str
    tenant: str = "default"
    lease: str
    reason: Literal["ended", "expired", "timeout", "unknown"] = "unknown"


class Drain(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """To a worker: take no more jobs; with ``stop``, finish or give back what is held and leave."""

    worker: str
    stop: bool = False


Signal = Beat | Serving | Acknowledged | CancelJob | LeaseGone | Drain
Message = Delivery | Report | Signal

_encode = msgspec.json.Encoder().encode
_deliveries = msgspec.json.Decoder(Delivery)
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
_signals: msgspec.json.Decoder[Signal] = msgspec.json.Decoder(Signal)


def encode_messages(messages: list[Any]) -> bytes:
    """Messages as one record value."""
    return b"\n".join([_encode(message) for message in messages])


def decode_deliveries(value: bytes) -> list[Delivery]:
    """Deliveries of a record; lines that cannot be read are dropped, for they are only hints."""
    return _readable(value, _deliveries)


def decode_reports(value: bytes) -> list[Report]:
    """Worker reports of a record; unreadable lines are dropped."""
    return _readable(value, _reports)


def decode_signals(value: bytes) -> list[Signal]:
    """Signals of a record; unreadable lines are dropped."""
    return _readable(value, _signals)


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _readable(value: bytes, decoder: msgspec.json.Decoder[Any]) -> list[Any]:
    found: list[Any] = []
    # All at once, which takes half as long, where there is a message on each line.
    with suppress(*_UNREADABLE):
        found = decoder.decode_lines(value)
        if len(found) == value.count(b"\n") + 1:
            return found
    found = []
    for line in value.split(b"\n"):
        with suppress(*_UNREADABLE):
            found.append(decoder.decode(line))
    return found
