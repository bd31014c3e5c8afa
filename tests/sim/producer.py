"""Producers: people and programs that put jobs on the log, change their minds, and sometimes write nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw

from penstock.core.job import Job
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.events import PRIORITIES
from penstock.schemas.ids import partition_of
from tests.core.newer_rules import Bumped
from tests.sim.weather import VERB_AGE_MS
from tests.sim.world import START_MS, World
from tests.sim.writer import Writer

GARBAGE = (
    b"{not json", b"\xff\xfe", b'{"type":"Exploded","id":"x","job":"a"}', b'{"type":"Succeeded","id":1,"job":"a"}',
    b"[" * 80 + b"]" * 80, b'"just a string"',
)  # fmt: skip
TYPES = ("resize", "report")
STEPS = ("ok", "ok", "ok", "slow", "fail", "back", "hang", "fatal")
NEEDS_TIMEOUT = frozenset({"hang", "deaf"})

LET_GO_EVERY_MS = 3_000
WISHES = ("cancel",) * 3 + ("retry", "hold", "edit") * 3 + ("unhold", "delete") * 2

Send = Callable[[ev.Enqueued], bool]


class Producer:
    """Everything it writes is decided at the start, from the seed; when it lands is another matter.

    ``send`` may take a job off its hands: true if it did. ``held`` tells which jobs are held: once the sky is clear
    they are let go, or they would wait for ever.
    """

    def __init__(
        self, world: World, held: Callable[[], list[Job]], steps: Sequence[str] = STEPS,
        send: Send = lambda event: False,
    ) -> None:  # fmt: skip
        self.world = world
        self._held, self._steps, self._send = held, steps, send
        self._writer = Writer(world, "producer", patient=True)
        self._sent: list[ev.Enqueued] = []
        self._patience_ms = VERB_AGE_MS if world.weather.forget_ms else 60_000
        """How long a verb may be on its way."""

    def start(self) -> None:
        weather = self.world.weather
        for number in range(weather.jobs):
            self.world.after(self.world.between(0, weather.storm_ms), lambda number=number: self._job(number))
        self.world.after(weather.storm_ms, self._let_go)

    def _let_go(self) -> None:
        world = self.world
        if not world.raining:
            for job in self._held():
                about = {"job": job.id, "of": job.enqueued_id, "not_after": world.now_ms + self._patience_ms}
                self._put(ev.Unheld(id=f"let-go.{world.random.getrandbits(40):x}", **about))
        world.after(LET_GO_EVERY_MS, self._let_go)

    def _job(self, number: int) -> None:
        world, random = self.world, self.world.random
        steps = [random.choice(self._steps) for _ in range(3)] + ["ok"]
        hangs = not NEEDS_TIMEOUT.isdisjoint(steps)
        home = f"~h{random.randint(0, 3)}" if random.random() < 0.3 else ""
        job_id = f"j{number}{home}"
        event = ev.Enqueued(
            id=f"enq.{job_id}",
            job=job_id,
            job_type=random.choice(TYPES),
            priority=random.choice(PRIORITIES),
            payload=Raw(json.dumps({"plan": steps, "ms": random.choice((5, 200, 3_000))}).encode()),
            delay_ms=random.choice((0, 0, 0, 500, 5_000)),
            run_at=START_MS + world.mono_ms + 3_000 if random.random() < 0.1 else 0,
            expires_at=START_MS + world.mono_ms + random.choice((300, 8_000))
            if random.random() < 0.15
            else 0,
            timeout_ms=4_000 if hangs else 0,
            max_attempts=random.choice((1, 2, 5)),
            backoff=ev.Backoff(
                kind=random.choice(("none", "fixed", "exponential")), base_ms=400, max_ms=3_000
            ),
            unique=self._unique(home.removeprefix("~")) if home and random.random() < 0.6 else None,
            concurrency_key=home.removeprefix("~") if number % 2 else "",
            batch=f"b{number % 3}" if number % 4 == 1 else "",
            workflow=f"w{number % 2}" if number % 5 == 1 else "",
        )
        self._sent.append(event)
        if not self._send(event):
            self._put(event, misrouted=world.chance(world.weather.odd_lines / 2))
        if world.chance(world.weather.odd_lines):
            self._odd(event)
        if world.chance(world.weather.verbs):
            world.after(world.between(0, random.choice((300, 8_000))), lambda: self._verb(event))
        if world.weather.upgrade_ms and random.random() < 0.4:
            bumped = Bumped(
                id=f"bump.{job_id}", job=job_id, of=event.id, not_after=world.now_ms + self._patience_ms
            )
            world.after(world.between(0, 10_000), lambda: self._put(bumped))
        if world.chance(world.weather.verbs / 2):
            world.after(world.between(0, 12), lambda: self._change_of_mind(event))

    def _unique(self, key: str) -> ev.Unique:
        """Few homes, so that many want the same key at a time."""
        random = self.world.random
        scope = random.choice(("until_started", "until_finished", "period"))
        return ev.Unique(
            key=key,
            scope=scope,
            period_ms=random.choice((200, 3_000, 9_000)) if scope == "period" else 0,
            on_conflict=random.choice(("reject", "return_existing", "replace", "replace")),
            not_after=random.choice((0, self.world.now_ms + self._patience_ms)),
        )

    def _put(self, event: ev.Event, *, misrouted: bool = False) -> None:
        count = self.world.names.partitions
        right = partition_of(event.job, count)
        number = (right + self.world.between(1, count - 1)) % count if misrouted and count > 1 else right
        self._writer.put(number, [encode_line(event)])

    def _odd(self, event: ev.Enqueued) -> None:
        world, random = self.world, self.world.random
        number = random.randrange(world.names.partitions)
        kind = random.choice(("garbage", "again", "conflict", "forged", "stale"))
        world.stats[f"odd {kind}"] += 1
        if kind == "garbage":
            self._writer.put(number, [random.choice(GARBAGE), b"", encode_line(event)])
        elif kind == "again":
            self._put(event, misrouted=random.random() < 0.5)
        elif kind == "conflict":
            other = ev.Enqueued(
                id=event.id, job=event.job, job_type="resize", payload=Raw(b'{"plan":["ok"],"ms":1}')
            )
            world.after(world.between(0, 3_000), lambda: self._put(other))
        elif kind == "forged":
            lease = ev.Leased(
                id=f"forged.{event.job}", job=event.job, worker="w0", attempt=1, lease_ms=1_000,
                seen=random.choice((0, 1 << 15)), epoch=random.choice((-1, 0)),
            )  # fmt: skip
            world.after(world.between(0, 3_000), lambda: self._put(lease))
        else:
            done = ev.Succeeded(
                id=f"forged.{event.job}.s", job=event.job, lease=f"0.7.{random.randint(0, 9)}"
            )
            world.after(world.between(0, 3_000), lambda: self._put(done))

    def _change_of_mind(self, event: ev.Enqueued) -> None:
        """Cancelled and wanted again at once, with luck just while it is being leased."""
        about = {"job": event.job, "of": event.id, "not_after": self.world.now_ms + self._patience_ms}
        lines = [
            encode_line(ev.CancelRequested(id=f"oh.{event.job}", **about)),
            encode_line(ev.RetryRequested(id=f"ah.{event.job}", **about)),
        ]
        self._writer.put(partition_of(event.job, self.world.names.partitions), lines)

    def _verb(self, event: ev.Enqueued) -> None:
        world, random = self.world, self.world.random
        about = {
            "job": event.job,
            "of": event.id,
            "not_after": world.now_ms + random.choice((500, self._patience_ms)),
        }
        verb = self._wish({"id": f"verb.{random.getrandbits(40):x}", **about})
        world.stats[f"asked {type(verb).__name__}"] += 1
        self._put(verb, misrouted=world.chance(world.weather.odd_lines / 3))
        if random.random() < 0.3:
            world.after(world.between(0, 10_000), lambda: self._put(verb))
        if random.random() < 0.4:
            world.after(world.between(500, 6_000), lambda: self._verb(event) if world.raining else None)

    def _wish(self, about: dict[str, Any]) -> ev.Verb:
        random = self.world.random
        match random.choice(WISHES):
            case "cancel":
                return ev.CancelRequested(**about)
            case "retry":
                return ev.RetryRequested(attempts=random.choice((0, 1)), **about)
            case "hold":
                return ev.Held(**about)
            case "unhold":
                return ev.Unheld(**about)
            case "edit":
                return ev.Edited(changes=Raw(json.dumps(self._changes()).encode()), **about)
            case _:
                return ev.Deleted(**about)

    def _changes(self) -> dict[str, Any]:
        random = self.world.random
        wanted = {
            "priority": random.choice(PRIORITIES),
            "queue": random.choice(("default", "other")),
            "delay_ms": random.choice((0, 200, 4_000)),
            "expires_at": random.choice((0, self.world.now_ms + 5_000)),
            "max_attempts": random.choice((1, 3)),
        }
        return {
            name: wanted[name] for name in random.sample(sorted(wanted), random.choice((0, 1, 1, 1, 1, 2, 2)))
        }
