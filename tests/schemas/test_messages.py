"""Hints between processes: read what can be read, drop the rest."""

from __future__ import annotations

import pytest
from msgspec import Raw

from penstock.schemas.messages import (
    Acknowledged,
    Beat,
    CancelJob,
    Delivery,
    Drain,
    Echo,
    Heartbeat,
    Holding,
    LeaseGone,
    Serving,
    Signal,
    decode_deliveries,
    decode_reports,
    decode_signals,
    encode_messages,
)

SIGNALS: list[Signal] = [
    Beat(orchestrator="o", incarnation="i", leads={0: 5}, caught_up=(1,), backlog={"default/t": 3}, at=9),
    Serving(projection="p", incarnation="i", address="127.0.0.1:1", partitions={0: 7}),
    Acknowledged(worker="w", orchestrator="o", orchestrator_incarnation="i", seq=1, outstanding=2),
    CancelJob(worker="w", job="j", lease="l", reason="r"),
    LeaseGone(worker="w", job="j", lease="l", reason="timeout"),
    Drain(worker="w", stop=True),
]
DELIVERY = Delivery(
    worker="w", partition=3, job="j",
    job_type="t", queue="q", attempt=1, max_attempts=5, lease="0.1.2", lease_ms=30_000,
    fence="65536", payload=Raw(b'{"a":1}'),
)  # fmt: skip
HEARTBEAT = Heartbeat(
    worker="w",
    incarnation="i",
    seq=4,
    types=("t",),
    credits={"oi": 3},
    holding=(Holding(0, "default/j", "l", 17),),
)

JUNK = [
    b"",
    b"\xff\xfe",
    b"junk",
    b"{}",
    b"[]",
    b'{"type":"Unheard"}',
    b'{"type":"Beat"}',
    b"[" * 200_000,
    b'{"worker":"w","payload":' + b"[" * 200_000,
    b'{"type":"Beat","orchestrator":' + b'{"a":' * 100_000,
]


def test_there_and_back() -> None:
    assert decode_signals(encode_messages(SIGNALS)) == SIGNALS
    assert (
        decode_reports(encode_messages([HEARTBEAT, Echo(orchestrator="o", incarnation="i", at=1)]))[0]
        == HEARTBEAT
    )
    [delivery] = decode_deliveries(encode_messages([DELIVERY]))
    assert bytes(delivery.payload) == b'{"a":1}'
    assert encode_messages([delivery]) == encode_messages([DELIVERY])


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_unreadable_lines_are_dropped_and_stop_nothing(junk: bytes) -> None:
    assert decode_signals(b"\n".join([junk, encode_messages(SIGNALS[:1]), junk])) == SIGNALS[:1]
    assert decode_reports(b"\n".join([junk, encode_messages([HEARTBEAT]), junk])) == [HEARTBEAT]
    assert len(decode_deliveries(b"\n".join([junk, encode_messages([DELIVERY]), junk]))) == 1


def test_nothing_is_no_messages() -> None:
    assert encode_messages([]) == b""
    assert decode_signals(b"") == []


def test_fields_of_later_versions_are_ignored() -> None:
    assert decode_signals(b'{"type":"Drain","worker":"w","from_the_future":1}') == [Drain(worker="w")]
