"""What became of every job: the producers' ledgers against the log, the handlers' notes, and the read model.

The log is folded here, line by line, and every accepted change is counted. What was promised is a list of sentences; a
:class:`Report` holds those that turned out wrong, and the figures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from penstock.core.job_state import TERMINAL
from penstock.core.partition import Folded, PartitionFold
from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from tests.faults.load import Ledger, expected_end
from tests.faults.records import RawRecord

_SHOWN = 5
REFUSALS = ("stale", "illegal", "conflict", "duplicate", "quarantined")


class Run(NamedTuple):
    """A handler's note: that it began, or came to its end. ``at_s`` is the machine's monotonic time."""

    what: str
    job: str
    attempt: int
    fence: str
    at_s: float


def runs_of(file: Path) -> list[Run]:
    """All notes, in the order of their times."""
    if not file.exists():
        return []
    split = [line.split() for line in file.read_text().splitlines()]
    found = [Run(what, job, int(attempt), fence, float(at)) for what, job, attempt, fence, at in split]
    return sorted(found, key=lambda run: run.at_s)


@dataclass(slots=True)
class Story:
    """One job on the log."""

    partition: int
    enqueued: int = 0
    ends: int = 0
    state: str = ""
    attempt: int = 0
    allowed: int = 0
    fences: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Report:
    """What a scenario showed. ``wrong`` is empty when every promise was kept."""

    acknowledged: int = 0
    unknown: int = 0
    unknown_written: int = 0
    repeats: int = 0
    lost: int = 0
    unfinished: int = 0
    doubled: int = 0
    """Jobs that came to an end more than once, or were begun more than once."""
    reruns: int = 0
    """Times that a handler ran to its end for a job for which one had before."""
    refused: dict[str, int] = field(default_factory=dict[str, int])
    first_s: float | None = None
    """From the fault to the next handler that finished."""
    pause_s: float = 0.0
    """Longest time, after the fault and under load, in which some partition's jobs did not start."""
    cleared_s: float | None = None
    """From the fault until all that had been acknowledged before it had run."""
    restarts: dict[str, int] = field(default_factory=dict[str, int])
    took_s: float = 0.0
    wrong: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def blame(self, promise: str, found: Sequence[object]) -> None:
        """Note that a promise was broken, with some of the evidence."""
        if found:
            shown = ", ".join(map(str, found[:_SHOWN]))
            self.wrong.append(f"{promise}: {len(found)} ({shown}{', ...' if len(found) > _SHOWN else ''})")


def fold_log(records: Iterable[RawRecord], partitions: int) -> tuple[dict[str, Story], Counter[str]]:
    """Every job's story, and how many lines were refused in which way."""
    stories: dict[str, Story] = {}
    outcomes: Counter[str] = Counter()
    folds: dict[int, PartitionFold] = {}
    rows: dict[int, dict[bytes, bytes]] = defaultdict(dict)
    for record in records:
        number = record.partition
        fold = folds.setdefault(number, PartitionFold(number, partitions, rows[number].get))
        for line in fold.fold(record.offset, record.time_ms, record.append_time, record.value):
            outcomes[line.outcome] += 1
            if line.outcome == "applied" and line.after is not None:
                _tell(stories, number, line)
        for key, data in fold.take_changes().rows:
            if data is None:
                rows[number].pop(key, None)
            else:
                rows[number][key] = data
    return stories, outcomes


def _tell(stories: dict[str, Story], partition: int, line: Folded) -> None:
    before, after = line.before, line.after
    assert after is not None
    story = stories.setdefault(after.id, Story(partition))
    story.enqueued += isinstance(line.event, ev.Enqueued)
    story.ends += after.state in TERMINAL and (before is None or before.state not in TERMINAL)
    story.state, story.attempt, story.allowed = after.state, after.attempt, after.attempts_allowed
    if isinstance(line.event, ev.Leased):
        story.fences.append(str(after.leased_at))


def check_ledgers(report: Report, ledgers: Iterable[Ledger], stories: Mapping[str, Story]) -> None:
    """No acknowledged job is lost; each that is there comes to the right end, once, within its attempts."""
    lost: list[str] = []
    for ledger in ledgers:
        report.repeats += ledger.repeats
        report.acknowledged += len(ledger.acknowledged)
        report.unknown += len(ledger.unknown)
        report.unknown_written += sum(job in stories for job in ledger.unknown)
        lost += [job for job in ledger.acknowledged if job not in stories]
        known = {**ledger.unknown, **ledger.acknowledged}
        ends = [(job, stories[job].state) for job in known if job in stories]
        wrong = [f"{job} {state}" for job, state in ends if state != expected_end(known[job])]
        report.blame("jobs came to another end than they should", wrong)
    report.lost = len(lost)
    report.blame("acknowledged jobs are lost", lost)
    unfinished = [job for job, story in stories.items() if story.state not in TERMINAL]
    report.unfinished = len(unfinished)
    report.blame("jobs never came to an end", unfinished)
    doubled = [job for job, story in stories.items() if story.ends > 1 or story.enqueued != 1]
    report.doubled = len(doubled)
    report.blame("jobs began or ended more than once", doubled)
    excess = [job for job, story in stories.items() if story.attempt > story.allowed]
    report.blame("jobs had more attempts than allowed", excess)
    slipped = [
        job for job, story in stories.items() if any(int(a) >= int(b) for a, b in pairwise(story.fences))
    ]
    report.blame("fences did not grow", slipped)


def check_runs(report: Report, runs: Sequence[Run], stories: Mapping[str, Story]) -> None:
    """No handler ever runs without a lease that the log granted; that some run twice is only counted."""
    strangers = [
        run.job for run in runs if run.job not in stories or run.fence not in stories[run.job].fences
    ]
    report.blame("handlers ran without a granted lease", strangers)
    ended = Counter(run.job for run in runs if run.what == "end")
    report.reruns = sum(count - 1 for count in ended.values())
    unrun = [job for job, story in stories.items() if story.state == "succeeded" and job not in ended]
    report.blame("jobs succeeded that no handler finished", unrun)


def check_read_model(
    report: Report, stories: Mapping[str, Story], listed: Mapping[str, tuple[str, int]]
) -> None:
    """The read model lists exactly the jobs of the log, in the same states."""
    of_log = {job: (story.state, story.attempt) for job, story in stories.items()}
    report.blame("jobs of the log that the read model lacks", sorted(of_log.keys() - listed.keys()))
    report.blame("jobs of the read model that the log lacks", sorted(listed.keys() - of_log.keys()))
    differ = [
        f"{job} {listed[job]} {of_log[job]}" for job in of_log.keys() & listed if listed[job] != of_log[job]
    ]
    report.blame("jobs whose state differs from the log's", differ)


def measure(
    report: Report,
    runs: Sequence[Run],
    acknowledged_s: Mapping[str, float],
    partitions: int,
    *,
    fault_s: float,
    load_end_s: float,
) -> None:
    """When work went on, by the handlers' notes."""
    ends = [run.at_s for run in runs if run.what == "end"]
    report.first_s = min((at - fault_s for at in ends if at > fault_s), default=None)
    starts: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        if run.what == "start" and run.at_s <= load_end_s:
            starts[partition_of(run.job, partitions)].append(run.at_s)
    for times in starts.values():
        under_fire = [at for at in times if at >= fault_s]
        moments = [fault_s, *under_fire, load_end_s]
        report.pause_s = max(report.pause_s, *(b - a for a, b in pairwise(moments)))
    first_end: dict[str, float] = {}
    for run in runs:
        if run.what == "end":
            first_end.setdefault(run.job, run.at_s)
    before = [job for job, at in acknowledged_s.items() if at <= fault_s and job in first_end]
    report.cleared_s = max((first_end[job] - fault_s for job in before), default=None)
