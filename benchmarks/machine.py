"""What the benchmarks were run on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def description() -> str:
    """Processor, cores, memory, kernel, on one line."""
    memory_kb = next(line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores of {_processor()}, {int(memory_kb) / 1024**2:.0f} GiB of memory, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}; "
        "servers, clients and workers all on this machine"
    )


def _processor() -> str:
    names = (
        line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")
    )
    return next(names, platform.machine())


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def busy_share() -> float:
    """Runnable processes per core over the last minute: above 0.5 before a run, its figures are not to be trusted."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))
