"""The export's hash chain: what it covers, and that every kind of tampering is found where it was done."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from hashlib import sha256

import pytest

from penstock.log.memory import MemoryLog
from penstock.schemas.copies import COPY_HEADER, CopiedPlace, encode_copied_from
from penstock.schemas.errors import LogUnavailable
from penstock.schemas.topics import Topics
from penstock.state import audit
from penstock.state.audit import export, verify_export

TOPICS = Topics(namespace="test", partitions=2)


async def exported(log: MemoryLog, **options: object) -> list[bytes]:
    chunks = [chunk async for chunk in export(log, TOPICS, **options)]
    return b"".join(chunks).splitlines()


@pytest.fixture
async def log() -> MemoryLog:
    log = MemoryLog(now_ms=lambda: 1_700_000_000_123)
    await log.ensure_topics([audit_spec()])
    await log.append(TOPICS.jobs, 0, b'{"n":0}\n{"n":1}\n\n{"n":2}')
    await log.append(TOPICS.jobs, 1, '{"text":"ü\\n"}'.encode())
    await log.append(TOPICS.jobs, 1, b"\xff\x00")
    await log.append(TOPICS.jobs, 0, b"")
    await log.append(TOPICS.jobs, 0, b"not json")
    return log


def audit_spec():
    from penstock.log.port import TopicSpec

    return TopicSpec(TOPICS.jobs, TOPICS.partitions)


async def test_a_stranger_can_compute_the_chain_from_the_documentation(log: MemoryLog) -> None:
    """Only SHA-256 and JSON, nothing of the package."""
    header, *lines, footer = [json.loads(line) for line in await exported(log)]
    previous: dict[int, bytes] = {}
    for partition in (0, 1):
        start, stop = header["ranges"][str(partition)]
        text = f"penstock-audit/1\nmemory\ntest.jobs\n2\n0\n{partition}\n{start}\n{stop}\n"
        previous[partition] = sha256(text.encode()).digest()
    for line in lines:
        data = line["event"].encode() if "event" in line else b"\xff\x00"
        numbers = [(line["partition"], 4), (line["offset"], 8), (line["line"], 4), (line["time"], 8)]
        place = b"".join(number.to_bytes(size, "big") for number, size in numbers)
        previous[line["partition"]] = sha256(previous[line["partition"]] + place + data).digest()
        assert previous[line["partition"]].hex() == line["hash"]
    assert footer["final"] == {str(number): value.hex() for number, value in previous.items()}
    assert footer["lines"] == len(lines)


async def test_every_line_is_there_in_order_and_verifies(log: MemoryLog) -> None:
    lines = await exported(log)
    places = [(item["partition"], item["offset"], item["line"]) for item in map(json.loads, lines[1:-1])]
    assert places == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 0)]
    assert json.loads(lines[5])["event"] == "", "an empty record has a place in the chain as well"
    report = verify_export(lines)
    assert (report.ok, report.lines, report.problem) == (True, 8, "")
    assert verify_export(line.decode() + "\n" for line in lines).final == report.final


async def test_the_same_log_exports_the_same(log: MemoryLog) -> None:
    assert await exported(log) == await exported(log)


async def test_a_range_is_cut_to_what_is_there(log: MemoryLog) -> None:
    lines = await exported(log, ranges={0: (1, 99)})
    assert [json.loads(line)["offset"] for line in lines[1:-1]] == [1, 2]
    assert verify_export(lines).ok
    assert verify_export(await exported(log, ranges={0: (3, 3)})).ok


def edited(line: bytes, /, **changes: object) -> bytes:
    return json.dumps(json.loads(line) | changes).encode()


TAMPERING: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "an event changed": (lambda x: [*x[:2], edited(x[2], event='{"n":9}'), *x[3:]], 3),
    "a time changed": (lambda x: [*x[:2], edited(x[2], time=1), *x[3:]], 3),
    "a line number changed": (lambda x: [*x[:2], edited(x[2], line=7), *x[3:]], 3),
    "a line left out": (lambda x: x[:2] + x[3:], 3),
    "a line twice": (lambda x: [*x[:3], x[2], *x[3:]], 4),
    "two lines swapped": (lambda x: [x[0], x[2], x[1], *x[3:]], 2),
    "a blank line left out": (lambda x: x[:3] + x[4:], 4),
    "cut in the middle": (lambda x: x[:4], 5),
    "the last line of a partition left out": (lambda x: x[:6] + x[7:], 9),
    "a line behind the end": (lambda x: [*x, x[-2]], 11),
    "the header changed": (lambda x: [edited(x[0], cluster_id="other"), *x[1:]], 2),
    "the generation changed": (lambda x: [edited(x[0], generation=1), *x[1:]], 2),
    "the range widened": (lambda x: [edited(x[0], ranges={"0": [0, 9], "1": [0, 2]}), *x[1:]], 2),
    "no header": (lambda x: x[1:], 1),
    "a line that is no JSON": (lambda x: [*x[:2], x[2][:-1], *x[3:]], 3),
    "another partition": (lambda x: [*x[:2], edited(x[2], partition=5), *x[3:]], 3),
    "outside the range": (lambda x: [*x[:2], edited(x[2], offset=77), *x[3:]], 3),
    "the count changed": (lambda x: [*x[:-1], edited(x[-1], lines=6)], 10),
    "a final hash changed": (lambda x: [*x[:-1], edited(x[-1], final={"0": "", "1": ""})], 10),
    "an empty record left out": (lambda x: x[:5] + x[6:], 6),
    "other bytes beside the event": (lambda x: [*x[:7], edited(x[7], event_base64="AAA="), *x[8:]], 8),
    "the encoding broken": (lambda x: [*x[:8], edited(x[8], event_base64="!"), *x[9:]], 9),
    "the encoded bytes changed": (lambda x: [*x[:8], edited(x[8], event_base64="AAA="), *x[9:]], 9),
    "bytes that are no text": (lambda x: [*x[:2], b"\xff", *x[3:]], 3),
}


@pytest.mark.parametrize("name", TAMPERING)
async def test_tampering_is_found_where_it_was_done(log: MemoryLog, name: str) -> None:
    tamper, line = TAMPERING[name]
    report = verify_export(tamper(await exported(log)))
    assert (report.ok, report.line) == (False, line), report.problem
    assert report.problem


def test_nothing_is_no_export() -> None:
    report = verify_export([])
    assert (report.ok, report.line) == (False, 1)


async def test_a_log_that_falls_silent_does_not_make_a_short_export(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SILENCE_MS", 20)
    bounds = await log.bounds(TOPICS.jobs, 0)

    async def ahead(topic: str, partition: int):
        return bounds._replace(end=bounds.end + 1)

    monkeypatch.setattr(log, "bounds", ahead)
    with pytest.raises(LogUnavailable):
        await exported(log, max_wait_ms=10)


async def test_where_copied_lines_stood_before_is_covered_too() -> None:
    log = MemoryLog(now_ms=lambda: 1_700_000_000_123)
    await log.ensure_topics([audit_spec()])
    header = encode_copied_from("copy", 3, 1, 0, [CopiedPlace(9, 9, 5), CopiedPlace(12, 12, 6)])
    await log.append(TOPICS.jobs, 0, b'{"n":0}\n{"n":1}', headers=((COPY_HEADER, header),))
    lines = await exported(log)
    first, second = (json.loads(line) for line in lines[1:3])
    assert (base64.b64decode(first["copied"]), "copied" in second) == (header, False)
    assert verify_export(lines).ok
    for changed in (base64.b64encode(header[:-1]).decode(), "AA==", "", "not base64"):
        tampered = [lines[0], json.dumps(first | {"copied": changed}).encode(), *lines[2:]]
        assert (verify_export(tampered).ok, verify_export(tampered).line) == (False, 2)
    del first["copied"]
    assert verify_export([lines[0], json.dumps(first).encode(), *lines[2:]]).line == 2
