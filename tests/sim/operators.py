"""Operators: who brings the log to newer rules while programs are upgraded, and who copies it when all is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from penstock.client.rules import want_rules
from penstock.core.partition import PartitionFold
from penstock.core.rows import encode_row
from penstock.core.rules import newest
from penstock.schemas.copies import copy_header
from penstock.schemas.errors import Conflict
from penstock.schemas.topics import Topics
from penstock.state.copy_log import End, LogCopier
from tests.core.newer_rules import NEWER
from tests.sim.host import Host
from tests.sim.referee import Referee
from tests.sim.roles import FoldingHost
from tests.sim.simlog import SimLog
from tests.sim.world import World

LISTEN_MS = 2_000
COPY_WITHIN_MS = 900_000


class UpgraderHost(Host):
    """Replaces programs one after the other, asking meanwhile that the log follow the rules of the newer one."""

    role = "upgrader"

    def __init__(self, world: World, folding: Sequence[FoldingHost]) -> None:
        super().__init__(world, "upgrader")
        self._folding = folding
        self.asked = False

    def plan(self) -> None:
        world, from_ms = self.world, self.world.weather.upgrade_ms
        world.after(from_ms, self.start)
        for host in self._folding:
            # Some are upgraded only when all others have been for long.
            world.after(from_ms + world.random.choice((0, 1_000, 5_000, 20_000)), host.upgrade)

    async def live(self, log: SimLog) -> None:
        while not self.asked:
            try:
                await want_rules(
                    log, self.world.names, newest(NEWER), "operator", known=newest(NEWER), listen_ms=LISTEN_MS
                )
            except Conflict as error:
                self.world.note(f"{self.name} has to wait: {error.message}")
                self.world.stats["upgrades refused"] += 1
                await asyncio.sleep(1.0)
            else:
                self.asked = True
        await self.until_end()

    def unfinished(self, referee: Referee) -> list[str]:
        found = [] if self.asked else ["newer rules were not asked for"]
        for fold in referee.folds:
            if fold.state.rules != newest(NEWER):
                found.append(f"partition {fold.partition} follows rules {fold.state.rules}")
        return found


class CopierHost(Host):
    """Copies the log, once nobody else lives, in as many lives as that takes."""

    role = "copier"

    def __init__(self, world: World, referee: Referee) -> None:
        super().__init__(world, "copier")
        self._referee = referee
        names = world.names
        self._target = Topics(
            "copy", partitions=world.weather.copy_to, work_partitions=names.work_partitions,
            worker_partitions=names.worker_partitions,
        )  # fmt: skip
        self._done = False

    def copy_to_the_end(self) -> None:
        """It rains once more; at the end each job is there as it was.

        Raises:
            Violation: it isn't.
        """
        world = self.world
        world.note("the log is copied")
        world.raining = True
        self.start()
        world.run(world.mono_ms + COPY_WITHIN_MS, lambda: self._done)
        world.clear_up()
        world.require(self._done, "the copy was not completed")
        # What is late lands behind the seal, and changes nothing.
        world.run(world.last_fault_ms)
        world.require(self._rows() == self._referee.job_rows(), "jobs of the copy are not as they were")
        world.stats["copies"] += 1

    def start(self) -> None:
        super().start()
        if self.loop is not None and self.lives < 12:
            self.loop.fuse = self.world.random.choice((-1, 50, 200, 800))

    async def live(self, log: SimLog) -> None:
        world = self.world
        copier = LogCopier(
            End(log, world.names), End(log, self._target), Path(f"sim/{self.name}/{self.lives}"), rules=NEWER,
            store_factory=self.disk.open,
        )  # fmt: skip
        async with copier:
            await copier.copy()
            world.require(await copier.behind() == 0, "the copier left something behind")
            comparison = await copier.compare()
            world.require(comparison.same, f"the copy differs: {comparison.difference}")
            await copier.seal()
        self._done = True
        await self.until_end()

    def _rows(self) -> dict[str, bytes]:
        """The copy as everybody else folds it."""
        found: dict[str, bytes] = {}
        for number in range(self._target.partitions):
            fold = PartitionFold(number, self._target.partitions, lambda _: None, rules=NEWER)
            for one in self.world.topics.read(self._target.jobs, number, 0, 10**6):
                fold.fold(one.offset, one.time_ms, True, one.value, copy_header(one.headers))
            found.update((key, encode_row(job)) for key, job in fold.touched_jobs() if job is not None)
        return found
