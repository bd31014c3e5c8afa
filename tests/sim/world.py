"""Virtual time, the log, and what can go wrong between a process and the log."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from penstock.log.memory_topics import Fault, MemoryTopics
from penstock.log.namespace import topic_specs
from penstock.log.port import Appended, Headers, Record
from penstock.schemas.messages import encode_messages
from penstock.schemas.topics import Topics
from tests.sim.tcp import Network
from tests.sim.vault import Vault
from tests.sim.weather import Weather

if TYPE_CHECKING:
    from tests.sim.loop import ProcessLoop

START_MS = 1_700_000_000_000
FAR_FUTURE_MS = 4_000_000_000_000
TOLD = 60
"""Events told with a violation."""


class Violation(AssertionError):
    """Something happened that must never happen."""


class Listener(Protocol):
    """An actor that wants to know when something was written."""

    def wake(self) -> None: ...


class SimTopics(MemoryTopics):
    """The memory log, with stamps of a clock that may step, and records that somebody else stamped."""

    def __init__(self, world: World) -> None:
        super().__init__(world.stamp_ms)
        self._world = world

    def end_of(self, place: tuple[str, int]) -> int:
        return self._partitions[place].next_offset

    def _write(
        self, topic: str, partition: int, value: bytes, key: bytes | None, headers: Headers
    ) -> Appended:
        world = self._world
        if topic == world.names.jobs and world.chance(world.weather.foreign_stamps):
            found = self._partition(topic, partition)
            offset, time_ms = found.next_offset, world.random.choice((0, FAR_FUTURE_MS, world.now_ms))
            found.records.append(Record(topic, partition, offset, time_ms, False, key, value, headers))
            found.offsets.append(offset)
            found.next_offset = offset + 1
            appended = Appended(offset, time_ms)
        else:
            appended = super()._write(topic, partition, value, key, headers)
        world.written(topic, partition)
        return appended


class World:
    """The scheduler and everything that actors share. ``mono_ms`` starts at 0."""

    def __init__(self, seed: int, weather: Weather) -> None:
        self.seed = seed
        self.weather = weather
        self.random = Random(seed)
        self.mono_ms = 0
        self.raining = True
        self.steps = 0
        self.stats: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        """How often each job's handler was started."""
        self.forgotten: set[str] = set()
        """Keys of jobs that were forgotten, whether they came again or not."""
        self.trace: deque[tuple[int, str]] = deque(maxlen=TOLD)
        self._chain = sha256()
        self._numbers = 0
        self.current: ProcessLoop | None = None
        """The loop that has its turn."""
        self.loops: list[ProcessLoop] = []
        self.network = Network(self)
        self.last_fault_ms = 0
        """Until when something of the storm may still strike: a sleeper wakes, a late record lands."""
        self.last_takeover_ms = 0
        self.complaints: list[str] = []
        """What a loop's callbacks raised, or tasks that nobody looked at."""
        self.names = Topics("sim", partitions=weather.partitions, work_partitions=4, worker_partitions=2)
        self.topics = SimTopics(self)
        self.topics.ensure(topic_specs(self.names))
        self.vault = Vault(self)
        self.listeners: dict[tuple[str, int], list[Listener]] = {}
        self.on_job_record: Callable[[Record], None] = lambda record: None
        self._skew_ms = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._scheduled = 0

    # Time

    @property
    def now_ms(self) -> int:
        return START_MS + self.mono_ms

    def stamp_ms(self) -> int:
        """The log's clock: it may step, forwards and back."""
        if self.chance(self.weather.clock_steps):
            self._skew_ms = self.random.randint(-5_000, 500)
        return self.now_ms + self._skew_ms

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._scheduled += 1
        heappush(self._heap, (self.mono_ms + max(0, delay_ms), self._scheduled, action))

    def run(self, until_ms: int, done: Callable[[], bool] = lambda: False) -> bool:
        """Let events happen until a time, or until ``done``; whether it was done."""
        while self._heap and self._heap[0][0] <= until_ms:
            self.mono_ms, _, action = heappop(self._heap)
            self.steps += 1
            action()
            if done():
                return True
        self.mono_ms = max(self.mono_ms, until_ms)
        return done()

    def moments(self, every_ms: int) -> Iterator[int]:
        """Times of the storm at which something happens that does so every so often on average; none for 0."""
        at_ms = 0.0
        while every_ms and (at_ms := at_ms + self.random.expovariate(1 / every_ms)) < self.weather.storm_ms:
            yield int(at_ms)

    def clear_up(self) -> None:
        """No more faults from now on."""
        self.raining = False
        self._skew_ms = 0

    # Dice

    def chance(self, probability: float) -> bool:
        return self.raining and probability > 0 and self.random.random() < probability

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def next_number(self) -> int:
        """Another one each time."""
        self._numbers += 1
        return self._numbers

    # Telling

    def note(self, text: str) -> None:
        self.trace.append((self.mono_ms, text))
        self._chain.update(b"%d %s\n" % (self.mono_ms, text.encode()))

    @property
    def trace_digest(self) -> str:
        """Of all that was ever noted: two runs of a seed are the same run if it is."""
        return self._chain.hexdigest()

    def violated(self, what: str) -> NoReturn:
        """Cry out. Kept too, for whoever runs the code that called might catch everything."""
        if what not in self.complaints:
            self.complaints.append(what)
        events = "\n".join(f"  {time_ms:>7} {text}" for time_ms, text in self.trace)
        raise Violation(f"seed {self.seed}, {self.weather}\n{what}\nlast events (virtual ms):\n{events}")

    def require(self, holds: bool, what: Callable[[], str] | str) -> None:
        if not holds:
            self.violated(what if isinstance(what, str) else what())

    # The log

    def append_fault(self) -> Fault | None:
        """What befalls the next append to the jobs topic."""
        if not self.chance(self.weather.append_fault):
            return None
        fault = self.random.choice(
            (Fault.REFUSED, Fault.WRITTEN_UNKNOWN, Fault.LOST_UNKNOWN, Fault.LATE_UNKNOWN)
        )
        self.stats[f"append {fault.value}"] += 1
        if fault is Fault.LATE_UNKNOWN:
            late_ms = (
                self.between(10, 15_000) if self.random.random() < 0.98 else self.between(60_000, 120_000)
            )
            self.last_fault_ms = max(self.last_fault_ms, self.mono_ms + late_ms)
            self.after(late_ms, lambda: void(self.topics.land_late()))
        return fault

    def append_jobs(self, partition: int, lines: Sequence[bytes]) -> None:
        """Append one record to the jobs topic, or fail as the weather wants: AppendRefused, AppendUnknown."""
        self.topics.append_with(self.append_fault(), self.names.jobs, partition, b"\n".join(lines), None, ())

    def send(self, topic: str, partition: int, messages: list[Any]) -> None:
        """Send hints: they may be lost, doubled, late, and so out of order."""
        weather = self.weather
        if self.chance(weather.hint_lost):
            self.stats["hints lost"] += 1
            return
        value = encode_messages(messages)
        for _ in range(2 if self.chance(weather.hint_doubled) else 1):
            late = self.chance(weather.hint_late)
            delay_ms = self.between(50, 6_000) if late else self.between(0, 3)
            self.after(delay_ms, lambda: void(self.topics.append(topic, partition, value)))

    def listen(self, listener: Listener, *places: tuple[str, int]) -> None:
        for place in places:
            self.listeners.setdefault(place, []).append(listener)

    def deafen(self, listener: Listener) -> None:
        for listeners in self.listeners.values():
            if listener in listeners:
                listeners.remove(listener)

    def written(self, topic: str, partition: int) -> None:
        if topic == self.names.jobs:
            self.on_job_record(
                self.topics.read(topic, partition, self.topics.bounds(topic, partition).end - 1)[0]
            )
        for listener in self.listeners.get((topic, partition), ()):
            listener.wake()


class Cursor:
    """Reads one partition of a topic from an offset on."""

    def __init__(self, world: World, topic: str, partition: int, offset: int | None = None) -> None:
        self._topics = world.topics
        self.topic, self.partition = topic, partition
        self.offset = world.topics.bounds(topic, partition).end if offset is None else offset

    def read(self, limit: int = 1_000) -> Sequence[Record]:
        records = self._topics.read(self.topic, self.partition, self.offset, limit)
        if records:
            self.offset = records[-1].offset + 1
        return records

    @property
    def overtaken(self) -> bool:
        """Whether what comes next was trimmed."""
        return self.offset < self._topics.bounds(self.topic, self.partition).start

    @property
    def behind(self) -> int:
        return self._topics.bounds(self.topic, self.partition).end - self.offset


def void(_: object) -> None:
    """For actions whose result nobody wants."""
