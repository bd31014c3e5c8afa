"""What ``penstock log copy`` and ``penstock log compare`` do, once it is known with which logs."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, structs

from penstock.cli.opening import log_of
from penstock.cli.settings import Settings
from penstock.log.hearing import LISTEN_MS, listen
from penstock.log.port import Log
from penstock.schemas.errors import Conflict, DigestMismatch, NotFound
from penstock.schemas.topics import Topics
from penstock.state.copy_compare import Comparison, HasJobs, JobTotals
from penstock.state.copy_fold import RowFold
from penstock.state.copy_folder import stored_partitions
from penstock.state.copy_log import End, LogCopier, source_shape

FOLLOW_PAUSE_S = 1.0
TELL_EVERY_S = 1.0
CATCH_UP_ROUNDS = 5


class CopyReport(Struct, frozen=True, kw_only=True):
    """How a copy ended: what was written in this run, and, if it got that far, how both sides compare."""

    sealed: bool
    generation: int
    behind: int
    lines: dict[int, int]
    records: dict[int, int]
    found: dict[int, int]
    source: JobTotals
    comparison: Comparison | None = None


class Wanted(NamedTuple):
    """How to copy. ``quiet_ms``: how long nobody may be heard on the source before the copy is sealed."""

    dry_run: bool = False
    follow: bool = False
    quiet_ms: int = LISTEN_MS


@contextmanager
def working_folder(wanted: Path | None) -> Generator[Path]:
    """A folder for the folds of one run, removed at the end."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="penstock-copy-", dir=wanted))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def opened_ends(
    source: Settings, target: Settings, *, dry_run: bool = False
) -> AsyncGenerator[tuple[End, End]]:
    """Both logs, open; one that holds both namespaces is opened once. In a dry run the target is not touched.

    Raises:
        NotFound: there is no log at the source; none is made.
        StoreLocked: an embedded log is in use.
    """
    _must_be_there(source)
    async with contextlib.AsyncExitStack() as stack:
        log = await stack.enter_async_context(log_of(source))
        shared = dry_run or target.log_url == source.log_url
        other = log if shared else await stack.enter_async_context(log_of(target))
        yield await _end_of(log, source), End(other, target.topics)


def _must_be_there(settings: Settings) -> None:
    if settings.is_embedded and not (settings.embedded_path / "log").is_dir():
        raise NotFound(f"there is no log in {settings.embedded_path}")


async def _end_of(log: Log, settings: Settings) -> End:
    """A log with as many partitions as it says that it has."""
    namespace = Topics(namespace=settings.namespace, partitions=1)
    shape = await source_shape(End(log, namespace))
    return End(log, structs.replace(namespace, partitions=shape.partitions))


async def copy_log(source: Settings, target: Settings, folder: Path, wanted: Wanted) -> CopyReport:
    """Copy, compare, seal.

    Raises:
        Conflict: somebody is still at work on the source, or the target is not free.
        DigestMismatch: the jobs of the copy are not those of the source; nothing was sealed.
        LogError: a log does not answer.
    """
    told = _Progress()
    if target.log_url == source.log_url and target.namespace == source.namespace:
        raise Conflict(
            "source and target are the same namespace of the same log: give --to or --to-namespace"
        )
    async with (
        _until_told(wanted.follow) as stopping,
        opened_ends(source, target, dry_run=wanted.dry_run) as ends,
    ):
        one, other = ends
        copier = LogCopier(one, other, folder, dry_run=wanted.dry_run, on_progress=told)
        async with copier:
            if wanted.follow:
                await _follow(copier, stopping)
            elif wanted.dry_run:
                await copier.copy()
            else:
                return await _complete(copier, one, source, wanted)
            return await _report(copier)


async def _report(
    copier: LogCopier, comparison: Comparison | None = None, *, sealed: bool = False
) -> CopyReport:
    copied = copier.copied
    return CopyReport(
        sealed=sealed,
        generation=copier.generation,
        behind=await copier.behind(),
        lines=copied.lines,
        records=copied.records,
        found=copied.found,
        source=copier.totals() if comparison is None else comparison.a,
        comparison=comparison,
    )


@asynccontextmanager
async def _until_told(follow: bool) -> AsyncGenerator[asyncio.Event]:
    """Set when this process is told to stop: what follows ends in good order then, however early it is told."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM) if follow else ()
    for number in numbers:
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _follow(copier: LogCopier, stopping: asyncio.Event) -> None:
    """Copy what there is and what comes, until ``stopping``."""
    while True:
        await copier.copy()
        if stopping.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_PAUSE_S):
                await stopping.wait()


async def _complete(copier: LogCopier, source: End, settings: Settings, wanted: Wanted) -> CopyReport:
    await _must_be_quiet(source, settings, wanted)
    await copier.copy()
    comparison = await copier.compare()
    for _ in range(CATCH_UP_ROUNDS):
        # Comparing took its time, and so did copying: whoever came back meanwhile is heard now.
        await _must_be_quiet(source, settings, wanted)
        if not await copier.behind():
            break
        await copier.copy()
        comparison = await copier.compare()
    else:
        raise Conflict(_growing(await copier.behind()))
    if not comparison.same:
        return await _report(copier, comparison)
    await copier.seal()
    report = await _report(copier, comparison, sealed=True)
    if report.behind:
        raise Conflict(f"{_growing(report.behind)} They came after the copy was sealed, and are not in it.")
    return report


def _growing(records: int) -> str:
    return f"somebody writes to the source: {records} records more than were copied."


async def _must_be_quiet(source: End, settings: Settings, wanted: Wanted) -> None:
    if settings.is_embedded:
        # Its folder is locked: nobody else is there.
        return
    names = (await listen(source.log, source.topics, wanted.quiet_ms)).names()
    if names:
        raise Conflict(
            f"still at work on the source: {', '.join(sorted(names))}. Stop all its roles, or use --follow until then."
        )


class _Progress:
    """Tells people how far it is, on a terminal."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def __call__(self, partition: int, next_offset: int, end: int) -> None:
        now_s = time.monotonic()
        if sys.stderr.isatty() and (now_s - self._told_s > TELL_EVERY_S):
            self._told_s = now_s
            sys.stderr.write(f"penstock: partition {partition} copied up to {next_offset} of {end}\n")


# Comparing


class Side(NamedTuple):
    """Something that has jobs, for :func:`compared`: an open fold of each partition, and where each of them stands."""

    parts: list[HasJobs]
    offsets: dict[int, int]


@asynccontextmanager
async def side_of(settings: Settings, folder: Path) -> AsyncGenerator[Side]:
    """Fold the log in the settings, in ``folder``.

    Raises:
        NotFound: there is no log.
        StoreLocked: the embedded log is in use.
    """
    _must_be_there(settings)
    folds: list[RowFold] = []
    try:
        async with log_of(settings) as log:
            end = await _end_of(log, settings)
            count = end.topics.partitions
            for number in range(count):
                folds.append(RowFold(folder / str(number), number, count))
                await folds[-1].follow(log, end.topics.jobs)
        # The log is closed by now: the other side may be another namespace of the same embedded one.
        yield Side([*folds], {fold.partition: fold.next_offset for fold in folds})
    finally:
        for fold in folds:
            fold.close()


@contextmanager
def stored_side(folder: Path) -> Generator[Side]:
    """What a role has in its folder. Raises NotFound, LogError."""
    parts = stored_partitions(folder)
    try:
        yield Side([*parts], {part.identity.partition: part.progress.next_offset for part in parts})
    finally:
        for part in parts:
            part.close()


def must_be_same(comparison: Comparison) -> None:
    """Raise DigestMismatch, which names the first job that differs, unless all jobs are the same."""
    difference = comparison.difference
    if comparison.same:
        return
    if difference is None:
        raise DigestMismatch("the digests differ, and no job does")
    fields = difference.fields()
    missing = "is missing in a" if difference.a is None else "is missing in b" if difference.b is None else ""
    raise DigestMismatch(
        f"the jobs are not the same; the first that differs is {difference.key}: "
        + (missing or ", ".join(f"{name} {a!r} and {b!r}" for name, (a, b) in fields.items())),
        job=difference.key,
    )
