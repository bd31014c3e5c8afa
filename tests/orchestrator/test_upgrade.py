"""A rolling upgrade of the rules: two versions of the program on one log, and the log goes over to newer rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from penstock.client.rules import rules_status, want_rules
from penstock.core.partition import PartitionFold
from penstock.core.rules import RULES, RulesTable, newest
from penstock.log.memory import MemoryLog
from penstock.log.namespace import Namespace, ask_for_rules, open_namespace
from penstock.orchestrator import upgrade
from penstock.orchestrator.outputs import Now, Outputs
from penstock.orchestrator.service import Orchestrator
from penstock.orchestrator.upgrade import AGAIN_MS, LISTEN_MS, RulesUpgrade
from penstock.projections.server import ReadServer
from penstock.projections.service import ProjectionService
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import Conflict, UnknownRules
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Beat, Serving
from penstock.schemas.topics import Topics
from tests.core.newer_rules import NEWER, NEXT, Bumped
from tests.state.shelf import Shelf
from tests.waiting import until

TOPICS = Topics(partitions=2, work_partitions=2)
LISTEN = 1_300
NOW = newest(RULES)
"""What a namespace is made with."""


class Group:
    """Processes on one log, each a program of its own version."""

    def __init__(self, log: MemoryLog, namespace: Namespace, stack: AsyncExitStack, folder: Path) -> None:
        self.log, self.namespace, self.stack, self.folder = log, namespace, stack, folder
        self.running: dict[str, tuple[Any, AsyncExitStack]] = {}

    async def orchestrator(self, name: str, rules: RulesTable, shelf: Shelf | None = None) -> Orchestrator:
        return await self._start(
            name,
            Orchestrator(
                self.log,
                self.namespace,
                self.folder / name,
                name=name,
                settle_ms=700,
                store_factory=shelf or Shelf(),
                rules=rules,
            ),
        )

    async def projection(self, name: str, rules: RulesTable, *, heard: bool = True) -> ProjectionService:
        service = ProjectionService(self.log, TOPICS, self.folder / name, store_factory=Shelf(), rules=rules)
        await self._start(name, service)
        if heard:
            server = ReadServer(service, self.log, name=name, incarnation=name, rules=rules)
            await self.running[name][1].enter_async_context(server)
        return service

    async def _start(self, name: str, service: Any) -> Any:
        stack = await self.stack.enter_async_context(AsyncExitStack())
        await stack.enter_async_context(service)
        self.running[name] = service, stack
        return service

    async def stop(self, *names: str) -> None:
        for name in names:
            await self.running.pop(name)[1].aclose()

    def services(self) -> list[Any]:
        return [service for service, _ in self.running.values()]

    async def write(self, *events: ev.Event) -> None:
        for event in events:
            partition = partition_of(event.job, TOPICS.partitions)
            await self.log.append(TOPICS.jobs, partition, encode_line(event))

    async def led(self, version: int) -> None:
        """Every partition is led, and follows these rules."""

        def there() -> bool:
            led = [
                machine.store.state.rules
                for service in self.services()
                if isinstance(service, Orchestrator)
                for machine in service.machine.leading
            ]
            return led == [version] * TOPICS.partitions

        await until(there, *self.services())

    async def same_digests(self) -> list[str]:
        """Each process folds what is there now, and comes to what a fold from the beginning comes to."""
        ends = {n: (await self.log.bounds(TOPICS.jobs, n)).end for n in range(TOPICS.partitions)}
        found: list[str] = []
        for partition, end in ends.items():
            records = self.log.topics.read(TOPICS.jobs, partition, 0, end)
            fold = PartitionFold(partition, TOPICS.partitions, lambda _: None, rules=NEWER)
            for record in records:
                fold.fold(record.offset, record.time_ms, True, record.value)
            digest = fold.take_changes().digest.to_bytes(32, "big").hex()
            for service in self.services():
                store = (
                    service.machine.partitions[partition].store
                    if isinstance(service, Orchestrator)
                    else service._parts[partition].store
                )
                await until(lambda store=store, end=end: store.next_offset >= end, *self.services())
                if store.next_offset == end:
                    store.commit()
                    assert store.digest == digest
            found.append(digest)
        return found


@pytest.fixture
async def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Group]:
    monkeypatch.setattr(upgrade, "LISTEN_MS", LISTEN)
    async with MemoryLog() as log, AsyncExitStack() as stack:
        yield Group(log, await open_namespace(log, TOPICS), stack, tmp_path)


def jobs() -> list[ev.Event]:
    return [ev.Enqueued(id=f"enq.{name}", job=name, job_type="t") for name in "abcdef"]


def bumps(names: str) -> list[ev.Event]:
    return [Bumped(id=f"bump.{name}", job=name, of=f"enq.{name}", not_after=1) for name in names]


@pytest.mark.slow
async def test_a_rolling_upgrade(group: Group) -> None:
    old = [await group.orchestrator("o-old", RULES), await group.projection("p-old", RULES)]
    await group.orchestrator("o-new", NEWER)
    await group.led(NOW)
    # Both versions together, and lines that only the newer one could understand: refused alike.
    await group.write(*jobs(), *bumps("ab"))
    await group.same_digests()

    with pytest.raises(
        Conflict, match=rf"orchestrator o-old \(up to {NOW}\), projection p-old \(up to {NOW}\)"
    ):
        await want_rules(group.log, TOPICS, NEXT, "test", known=newest(NEWER), listen_ms=LISTEN)
    with pytest.raises(Conflict, match=f"this program knows no rules above {NOW}"):
        await want_rules(group.log, TOPICS, NEXT, "test", listen_ms=LISTEN)
    await group.projection("p-new", NEWER)
    await group.stop("o-old")
    await group.led(NOW)
    with pytest.raises(Conflict, match=rf"by projection p-old \(up to {NOW}\):"):
        await want_rules(group.log, TOPICS, NEXT, "test", known=newest(NEWER), listen_ms=LISTEN)
    await group.stop("p-old")
    assert old[0].failure.done() is False

    # Only newer ones are left: now it is done, in every partition.
    before = await want_rules(group.log, TOPICS, NEXT, "test", known=newest(NEWER), listen_ms=LISTEN)
    assert (before.wanted, before.partitions) == (NOW, {0: NOW, 1: NOW})
    assert [(one.kind, one.name, one.rules) for one in before.processes] == [
        ("orchestrator", "o-new", NEXT),
        ("projection", "p-new", NEXT),
    ]
    await group.led(NEXT)
    status = await rules_status(group.log, TOPICS, LISTEN)
    assert (status.wanted, status.partitions, status.all_at(NEXT, 2)) == (NEXT, {0: NEXT, 1: NEXT}, True)
    await group.write(*bumps("cd"))
    await group.same_digests()
    projection = group.running["p-new"][0]
    shown = {name: (await projection.job("default", name)).priority for name in "abcd"}
    assert shown == {"a": "normal", "b": "normal", "c": "critical", "d": "critical"}

    # One that comes late and is older stops, and says what to do; the others go on.
    late = await group.orchestrator("late", RULES)
    await until(late.failure.done)
    with pytest.raises(UnknownRules, match="upgrade Penstock"):
        late.failure.result()
    await group.stop("late")
    await group.same_digests()


@pytest.mark.slow
async def test_one_that_nobody_heard_stops_where_it_would_have_to_guess(group: Group) -> None:
    unheard = await group.projection("p-old", RULES, heard=False)
    await group.orchestrator("o-new", NEWER)
    await group.led(NOW)
    await group.write(*jobs())
    await want_rules(group.log, TOPICS, NEXT, "test", known=NEXT, listen_ms=LISTEN)
    await until(unheard.failure.done)
    with pytest.raises(UnknownRules, match="upgrade Penstock"):
        unheard.failure.result()
    await group.stop("p-old")
    await group.led(NEXT)


@pytest.mark.slow
async def test_a_wish_outlives_who_was_to_fulfil_it(group: Group) -> None:
    shelf = Shelf()
    await group.orchestrator("o-1", RULES, shelf)
    await group.led(NOW)
    # Written past all checks: a leader that lacks the rules does nothing about it.
    await ask_for_rules(group.log, TOPICS, NEXT, "test")
    await group.write(*jobs())
    await asyncio.sleep(0)
    await group.stop("o-1")
    await group.orchestrator("o-2", NEWER, shelf)
    await group.led(NEXT)
    await group.write(*bumps("e"))
    await group.same_digests()


async def test_nobody_there_nothing_asked() -> None:
    async with MemoryLog() as log:
        await open_namespace(log, TOPICS)
        with pytest.raises(Conflict, match="no orchestrator"):
            await want_rules(log, TOPICS, 1, "test", listen_ms=10)
        assert (await rules_status(log, TOPICS, 10)).processes == []


# When a leader proposes


class Led:
    """A led partition, as far as it matters here."""

    number = 0

    def __init__(self) -> None:
        self.proposed: list[int] = []
        self.store: Any = self
        self.state: Any = self
        self.rules = 1

    def activate_rules(self, version: int, now: Now, out: Outputs) -> None:
        self.proposed.append(version)


def turn(upgrading: RulesUpgrade, led: Led, now_ms: int, *peers: Beat) -> Outputs:
    out = Outputs()
    upgrading.turn(cast("Any", [led]), peers, Now(0, now_ms), out)
    return out


def test_it_is_proposed_once_all_are_known_and_again_until_it_is_folded() -> None:
    upgrading, led = RulesUpgrade(3, 0), Led()
    turn(upgrading, led, LISTEN_MS)
    assert led.proposed == []
    upgrading.want(3)
    upgrading.want(2)
    turn(upgrading, led, LISTEN_MS - 1)
    assert led.proposed == []
    for now_ms in (LISTEN_MS, LISTEN_MS + 1, LISTEN_MS + AGAIN_MS):
        turn(upgrading, led, now_ms)
    assert led.proposed == [2, 2]
    led.rules = 2
    turn(upgrading, led, LISTEN_MS + AGAIN_MS + 1)
    assert led.proposed == [2, 2, 3]
    led.rules = 3
    turn(upgrading, led, 10**6)
    assert led.proposed == [2, 2, 3]


def test_who_lacks_the_rules_holds_it_up_while_it_lives() -> None:
    upgrading, led = RulesUpgrade(2, 0), Led()
    upgrading.want(2)
    upgrading.hear(Serving(projection="p", incarnation="p", address="", rules=1), 10_000)
    out = turn(upgrading, led, 10_000, Beat(orchestrator="o", incarnation="o", rules=1))
    assert (led.proposed, out.notices) == (
        [],
        ["rules 2 are wanted, and not supported by orchestrator o, projection p"],
    )
    assert turn(upgrading, led, 11_000).notices == []
    upgrading.hear(Serving(projection="p", incarnation="p", address="", leaving=True), 11_000)
    turn(upgrading, led, 11_000)
    assert led.proposed == [2]


def test_one_that_fell_silent_counts_no_more_and_one_that_was_deaf_listens_first() -> None:
    upgrading, led = RulesUpgrade(2, 0), Led()
    upgrading.want(2)
    upgrading.hear(Serving(projection="p", incarnation="p", address="", rules=1), 0)
    upgrading.unheard(20_000)
    turn(upgrading, led, 20_001)
    assert led.proposed == []
    turn(upgrading, led, 20_000 + LISTEN_MS)
    assert led.proposed == [2]


def test_one_that_lacks_them_itself_proposes_nothing() -> None:
    upgrading, led = RulesUpgrade(1, 0), Led()
    upgrading.want(2)
    assert "this orchestrator" in turn(upgrading, led, 10**5).notices[0]
    assert led.proposed == []


def test_of_what_the_namespace_was_made_with_nobody_is_asked() -> None:
    upgrading, led = RulesUpgrade(3, 0, made_with=2), Led()
    upgrading.want(3)
    turn(upgrading, led, 1, Beat(orchestrator="o", incarnation="o", rules=1))
    assert led.proposed == [2]
    led.rules = 2
    turn(upgrading, led, 2)
    assert led.proposed == [2]
