"""How bad things are in one run: probabilities and counts, drawn from the seed."""

from __future__ import annotations

from random import Random

from msgspec import Struct
from msgspec.structs import replace

VERB_AGE_MS = 4_000
"""How far ahead a verb's ``not_after`` may lie where jobs are forgotten: what is minutes otherwise would never end."""

FORGET_MS = 2 * VERB_AGE_MS
"""The shortest time that a job may stay after its end."""


class Weather(Struct, frozen=True):
    """Probabilities are for each occasion, times are virtual ms."""

    storm_ms: int = 20_000
    """How long jobs come in and faults happen; then the sky clears and everything must come to its end."""
    partitions: int = 2
    orchestrators: int = 1
    workers: int = 2
    jobs: int = 20
    append_fault: float = 0.0
    hint_lost: float = 0.0
    hint_doubled: float = 0.0
    hint_late: float = 0.0
    crash_in_outputs: float = 0.0
    """For each single output that an orchestrator carries out."""
    orchestrator_trouble_ms: int = 0
    """Mean time between crashes, pauses and deaf spells of orchestrators; 0 is never."""
    worker_trouble_ms: int = 0
    odd_lines: float = 0.0
    """Garbage, misrouted, doubled and forged lines, for each job."""
    verbs: float = 0.0
    clock_steps: float = 0.0
    foreign_stamps: float = 0.0
    """Records whose time was not stamped by the log."""
    give_up: float = 0.0
    """A writer stops retrying a record that is refused or whose fate is unknown."""
    window: int = 8_192
    """Jobs of a lane that a backlog keeps in memory."""
    horizon_ms: int = 60_000
    """How far ahead timers are kept in memory."""
    forget_ms: int = 0
    """How long jobs stay after their end; 0 is for ever."""
    snapshots_ms: int = 0
    """Mean time between snapshots, each followed by a trim of the log; 0 is never."""

    # Only where whole processes are simulated

    projections: int = 1
    nodes: bool = False
    """Orchestrators are read models as well, over one fold."""
    http_workers: int = 0
    apis: int = 1
    """Behind a balancer, where there are HTTP workers."""
    skew_ms: int = 0
    """How far hosts' wall clocks may be off, to either side."""
    drift: float = 0.0
    """By how much hosts' clocks may run too fast or too slow."""
    crash_in_writes: float = 0.0
    """Batches before or behind which the process dies."""
    slow_turns: float = 0.0
    """Turns of an event loop that come up to 300 ms late."""
    process_trouble_ms: int = 0
    """Mean time between crashes, pauses, cuts and orderly stops of any process."""
    operations_ms: int = 0
    """Somebody changes many jobs at once, about so often; 0 is nobody."""
    upgrade_ms: int = 0
    """When programs with newer rules begin to take the place of the older ones; 0 is never."""
    type_limits: bool = False
    """Whether workers with most slots run only one job of some type at once."""
    copy_to: int = 0
    """Into so many partitions the log is copied when all is done; 0 is not at all."""

    @property
    def calm(self) -> bool:
        return not any(
            (
                self.append_fault, self.hint_lost, self.hint_late, self.crash_in_outputs,
                self.orchestrator_trouble_ms, self.worker_trouble_ms, self.process_trouble_ms, self.slow_turns,
                self.crash_in_writes,
            )
        )  # fmt: skip

    @property
    def only_workers_fail(self) -> bool:
        """Whether nothing goes wrong but with workers' processes."""
        return not any(
            (
                self.append_fault, self.hint_lost, self.hint_late, self.crash_in_outputs,
                self.orchestrator_trouble_ms, self.process_trouble_ms, self.slow_turns,
                self.crash_in_writes,
            )
        )  # fmt: skip


def draw(random: Random) -> Weather:
    """Some weather. Each kind of trouble is absent in some runs, so that what another hides can be seen."""

    def some(most: float) -> float:
        return random.choice((0.0, most * random.random(), most))

    return Weather(
        storm_ms=random.choice((6_000, 12_000, 20_000)),
        partitions=random.choice((2, 2, 3, 4)),
        orchestrators=random.choice((1, 2, 2, 3)),
        workers=random.choice((1, 2, 3, 4)),
        jobs=random.choice((6, 10, 15, 20, 25, 60)),
        append_fault=some(0.15),
        hint_lost=some(0.2),
        hint_doubled=some(0.1),
        hint_late=some(0.15),
        crash_in_outputs=some(0.01),
        orchestrator_trouble_ms=random.choice((0, 1_000, 4_000, 8_000)),
        worker_trouble_ms=random.choice((0, 3_000, 8_000)),
        odd_lines=some(0.6),
        verbs=some(0.5),
        clock_steps=some(0.05),
        foreign_stamps=some(0.2),
        give_up=some(0.2),
        window=random.choice((2, 8_192)),
        horizon_ms=random.choice((500, 60_000)),
        forget_ms=random.choice((0, 0, 0, FORGET_MS)),
        snapshots_ms=random.choice((0, 0, 1_500)),
    )


def draw_whole(random: Random) -> Weather:
    """Some weather for a world of whole processes, which is a small one, for it is dear."""

    def some(most: float) -> float:
        return random.choice((0.0, most * random.random(), most))

    calm = random.random() < 0.1
    only_workers = random.random() < 0.1
    quiet = calm or only_workers
    nodes = random.random() < 0.3
    # What is copied is a log that was never trimmed.
    snapshots_ms = 0 if quiet else random.choice((0, 0, 1_500))
    drawn = Weather(
        storm_ms=random.choice((4_000, 7_000, 12_000)),
        partitions=random.choice((1, 2, 3)),
        orchestrators=random.choice((1, 2, 2, 3)),
        workers=random.choice((1, 1, 2)),
        http_workers=random.choice((0, 0, 1, 2)),
        apis=random.choice((1, 1, 2)),
        nodes=nodes,
        projections=random.choice((0, 1)) if nodes else random.choice((1, 1, 2)),
        jobs=random.choice((4, 8, 12, 20)),
        append_fault=0 if quiet else some(0.15),
        hint_lost=0 if quiet else some(0.2),
        hint_doubled=0 if calm else some(0.1),
        hint_late=0 if quiet else some(0.15),
        orchestrator_trouble_ms=0 if quiet else random.choice((0, 0, 2_000)),
        worker_trouble_ms=0 if calm else random.choice((0, 1_500, 4_000)),
        process_trouble_ms=0 if quiet else random.choice((0, 1_000, 3_000)),
        odd_lines=0 if calm else some(0.5),
        verbs=0 if calm else some(0.4),
        clock_steps=some(0.05),
        foreign_stamps=0 if calm else some(0.2),
        give_up=0 if calm else some(0.2),
        window=random.choice((2, 8_192)),
        horizon_ms=random.choice((500, 60_000)),
        skew_ms=random.choice((0, 0, 2_000, 20_000)),
        drift=random.choice((0.0, 0.0, 0.01)),
        crash_in_writes=0 if quiet else some(0.005),
        slow_turns=0 if quiet else some(0.02),
        forget_ms=random.choice((0, 0, 0, FORGET_MS)),
        snapshots_ms=snapshots_ms,
        upgrade_ms=random.choice((0, 0, 0, 0, 0, 1_000, 4_000)),
        copy_to=0 if snapshots_ms else random.choice((0, 0, 0, 0, 0, 0, 1, 2, 5)),
    )
    # Not drawn by itself: all else stays as it was.
    return _with_operations(replace(drawn, type_limits=drawn.window == 2), random)


def _with_operations(drawn: Weather, random: Random) -> Weather:
    """In some worlds somebody changes many jobs at once: where all that was written can be looked at in the end."""
    plain = not (drawn.forget_ms or drawn.snapshots_ms or drawn.upgrade_ms or drawn.copy_to)
    if not (plain and drawn.http_workers and drawn.verbs) or random.random() < 0.3:
        return drawn
    return replace(drawn, operations_ms=random.choice((1_000, 3_000)))
