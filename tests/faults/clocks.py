"""Clocks that jump: libfaketime between a process and its wall clock; the monotonic clock is left alone.

Nothing moves the machine's own clock: others live on it.
"""

from __future__ import annotations

from pathlib import Path

_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)


def library() -> Path | None:
    """Where libfaketime is installed (Debian: the package `libfaketime`)."""
    return next((path for path in map(Path, _LIBRARIES) if path.exists()), None)


class FakeClock:
    """The wall clock of one process; may jump while that runs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / f"{name}.clock"
        self.set(0)

    def set(self, offset_s: int) -> None:
        """Jump to so many seconds off the machine's clock."""
        scratch = self._file.with_suffix(".part")
        scratch.write_text(f"{offset_s:+d}s\n")
        scratch.rename(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the process whose clock this is."""
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # Seconds until a jump is seen: the file is not read at every question for the time.
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Its way round a fault of old C libraries makes timed waits of the JVM last for ever on new ones.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
