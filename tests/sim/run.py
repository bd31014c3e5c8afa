"""One run: a stormy time, then clear sky until everything has come to its end, then the reckoning."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.sim import checks
from tests.sim.orchestrator import OrchestratorProcess
from tests.sim.producer import TYPES, Producer
from tests.sim.referee import Referee
from tests.sim.scale import scaled
from tests.sim.weather import Weather, draw
from tests.sim.worker import MODEL_STEPS, ModelWorker
from tests.sim.world import World

CLEAR_SKY_MS = 240_000
"""How long after the last fault everything may take: lost proposals are given up after 45 s, cancels after 30 s."""


LATEST_MS = 26_000
"""How long after the storm something that began in it may still strike: a sleeper, a late record, a zombie."""


class Run:
    """A world and who lives in it."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.weather = weather or draw(Random(seed))
        self.world = World(seed, self.weather)
        self.referee = Referee(self.world)
        self.orchestrators = [
            OrchestratorProcess(self.world, self.referee, f"o{number}")
            for number in range(self.weather.orchestrators)
        ]
        # Each job type has a worker at least, and some can do both.
        self.workers = [
            ModelWorker(
                self.world, f"w{number}", TYPES if number == 0 else (TYPES[number % 2],), stubborn=number == 2
            )
            for number in range(self.weather.workers)
        ]
        self.producer = Producer(self.world, self.referee.held, MODEL_STEPS)

    def play(self) -> None:
        """Run to the end.

        Raises:
            Violation: with the seed and the last events.
        """
        with scaled(self.weather):
            self._go()

    def _go(self) -> None:
        world = self.world
        for actor in (*self.orchestrators, *self.workers):
            world.after(world.between(0, 200), actor.start)
        self.producer.start()
        self._trouble()
        world.run(self.weather.storm_ms)
        world.clear_up()
        world.note("the sky clears")
        # What is late still lands, and those that sleep wake.
        world.run(self.weather.storm_ms + LATEST_MS, self._all_done if self.weather.calm else lambda: False)
        world.run(world.mono_ms + CLEAR_SKY_MS, self._all_done)
        self._reckon()
        world.stats["virtual ms"] = world.mono_ms
        world.stats["steps"] = world.steps

    def _trouble(self) -> None:
        """Plan who is struck when."""
        world, random, weather = self.world, self.world.random, self.weather
        for victims, every_ms, strike in (
            (self.orchestrators, weather.orchestrator_trouble_ms, self._strike_orchestrator),
            (self.workers, weather.worker_trouble_ms, self._strike_worker),
            (self.orchestrators, weather.snapshots_ms, OrchestratorProcess.take_snapshots),
        ):
            for at_ms in world.moments(every_ms):
                victim = random.choice(victims)
                world.after(at_ms, lambda victim=victim, strike=strike: strike(victim))

    def _strike_orchestrator(self, victim: OrchestratorProcess) -> None:
        world = self.world
        match world.random.choice(("crash", "pause", "deaf", "blind", "usurp")):
            case "crash":
                victim.crash()
            case "pause":
                victim.pause(world.random.choice((600, 4_000, 20_000)))
            case "usurp":
                victim.usurp()
            case "deaf":
                victim.deaf_until_ms = world.mono_ms + world.random.choice((1_500, 5_000, 15_000))
                world.note(f"{victim.name} is deaf until {victim.deaf_until_ms}")
            case _:
                victim.blind_until_ms = world.mono_ms + world.random.choice((1_500, 5_000, 15_000))
                world.note(f"{victim.name} reads no jobs until {victim.blind_until_ms}")

    def _strike_worker(self, victim: ModelWorker) -> None:
        world = self.world
        match world.random.choice(("crash", "pause", "replace")):
            case "crash":
                victim.crash()
            case "pause":
                victim.pause(world.random.choice((1_000, 8_000, 25_000)))
            case _:
                victim.replace()

    def _all_done(self) -> bool:
        # Asking is dear, and a second does not matter.
        return self.world.steps % 64 == 0 and not self.referee.unfinished()

    def _reckon(self) -> None:
        world = self.world
        left = self.referee.unfinished()
        world.require(not left, lambda: f"not at its end after {world.mono_ms} ms: " + "; ".join(left[:10]))
        for process in self.orchestrators:
            machine = process.machine
            world.require(machine is not None, f"{process.name} did not come back")
            if machine is None:
                continue
            for one in machine.partitions.values():
                one.commit()
                self.referee.compare(one.number, one.store.committed_offset, one.store.digest, process.name)
                world.require(
                    one.store.recompute_digest() == one.store.digest,
                    f"{process.name} has damaged rows of {one.number}",
                )
                checks.check_rows(world, one)
                if one.role == "leading":
                    checks.check_backlog(world, one)
        for job in self.referee.jobs.values():
            world.stats[f"jobs {job.state}"] += 1


def simulate(seed: int, weather: Weather | None = None) -> Counter[str]:
    """Run one seed; what happened, by name."""
    run = Run(seed, weather)
    run.play()
    return run.world.stats
