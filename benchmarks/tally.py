"""How handlers tell that they ran: a counter in shared memory, and files of latencies and places.

Nothing but the standard library, for it is imported by other environments too.

Every benchmarked worker in Python uses this, Penstock's as well as the peers'; those in Go and JavaScript write the
same files. ``count`` costs well under a microsecond, so that it measures without being measured.

Files in the folder named by ``BENCH_TALLY``, per process (``<pid>``):

* ``<pid>.count``: two unsigned 64-bit integers, little-endian: jobs that ran; when the first did, in ns since 1970;
* ``<pid>.latency``: signed 64-bit integers, little-endian: ns from enqueueing until the handler's first line, per job;
* ``<pid>.places``: pairs of them: a job's partition, and when it ran.
"""

from __future__ import annotations

import array
import mmap
import os
import struct
import threading
import time
from pathlib import Path

_COUNT = struct.Struct("<Q")
_LATENCY = struct.Struct("<q")
_PLACE = struct.Struct("<qq")
_BOTH = struct.Struct("<QQ")


class _Process:
    """This process's files, opened at the first job."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.lock = threading.Lock()
        self.jobs = 0
        self.memory: mmap.mmap | None = None
        self.records = -1

    def open(self) -> mmap.mmap:
        path = _folder() / f"{os.getpid()}.count"
        path.write_bytes(_BOTH.pack(0, time.time_ns()))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), _BOTH.size)
        return self.memory


def _folder() -> Path:
    return Path(os.environ["BENCH_TALLY"])


_process = _Process()


# A pool that forks after importing its handlers would otherwise have all its processes count in one place.
os.register_at_fork(after_in_child=_process.begin)


def count() -> None:
    """A no-op handler ran."""
    process = _process
    with process.lock:
        memory = process.memory or process.open()
        process.jobs += 1
        _COUNT.pack_into(memory, 0, process.jobs)


def since(sent_ns: int) -> None:
    """A handler begins whose job was about to be enqueued at ``sent_ns``, on this machine's clock."""
    _record("latency", _LATENCY.pack(time.time_ns() - sent_ns))


def place(partition: int) -> None:
    """A handler ran for a job of this partition."""
    _record("places", _PLACE.pack(partition, time.time_ns()))


def _record(kind: str, data: bytes) -> None:
    process = _process
    if process.records < 0:
        with process.lock:
            if process.records < 0:
                path = _folder() / f"{os.getpid()}.{kind}"
                process.records = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(process.records, data)
    count()


def read_count(folder: Path) -> tuple[int, int]:
    """Jobs that ran, and when the first did (ns since 1970; 0 when none has)."""
    found = [
        _BOTH.unpack(data) for path in folder.glob("*.count") if len(data := path.read_bytes()) == _BOTH.size
    ]
    ran = [(jobs, first) for jobs, first in found if jobs]
    return sum(jobs for jobs, _ in ran), min((first for _, first in ran), default=0)


def read_latencies_ms(folder: Path) -> list[float]:
    """All latencies, in the order of each process."""
    values = array.array("q")
    for path in sorted(folder.glob("*.latency")):
        data = path.read_bytes()
        values.frombytes(data[: len(data) // 8 * 8])
    return [value / 1e6 for value in values]


def read_places(folder: Path) -> list[tuple[int, int]]:
    """Partition of a job and when it ran, ns since 1970."""
    found: list[tuple[int, int]] = []
    for path in folder.glob("*.places"):
        data = path.read_bytes()
        found.extend(_PLACE.iter_unpack(data[: len(data) // _PLACE.size * _PLACE.size]))
    return found


def clear(folder: Path) -> None:
    """Forget everything; only while no worker runs."""
    for path in folder.iterdir():
        path.unlink()


def forget_latencies(folder: Path) -> None:
    """Those so far were for warming up. The counts stay; workers may be running, but not be at work."""
    for path in folder.glob("*.latency"):
        os.truncate(path, 0)
