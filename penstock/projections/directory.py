"""Which projection process answers for which partition, from what they broadcast. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.schemas.messages import Serving

SILENT_AFTER_S = 3.0
"""A process not heard for so long is not asked any more."""


class _Process:
    __slots__ = ("heard_at", "serving")

    def __init__(self, serving: Serving, heard_at: float) -> None:
        self.serving = serving
        self.heard_at = heard_at


class Directory:
    """A partition keeps its process for as long as that serves it: another one may be further behind."""

    def __init__(self) -> None:
        self._processes: dict[str, _Process] = {}
        self._chosen: dict[int, str] = {}

    def heard(self, serving: Serving, now_s: float) -> None:
        """A process announced itself, or that it leaves."""
        if serving.leaving:
            self.gone(serving.address)
        else:
            self._processes[serving.address] = _Process(serving, now_s)
            for address in [name for name, known in self._processes.items() if _silent(known, now_s)]:
                self.gone(address)

    def gone(self, address: str) -> None:
        """A process does not answer. It counts again when it announces itself again."""
        self._processes.pop(address, None)

    def address_of(self, partition: int, now_s: float) -> str | None:
        """Where to ask about a partition: whom was asked before, else whoever is furthest; None if nobody serves it."""
        chosen = self._processes.get(self._chosen.get(partition, ""))
        if chosen is not None and _serves(chosen, partition, now_s):
            return chosen.serving.address
        able = [process for process in self._processes.values() if _serves(process, partition, now_s)]
        if not able:
            return None
        best = max(able, key=lambda process: (process.serving.partitions[partition], process.serving.address))
        self._chosen[partition] = best.serving.address
        return best.serving.address

    def cover(self, partitions: Iterable[int], now_s: float) -> tuple[dict[str, list[int]], list[int]]:
        """Partitions by the address to ask, and those that nobody serves."""
        found: dict[str, list[int]] = {}
        missing: list[int] = []
        for partition in partitions:
            address = self.address_of(partition, now_s)
            if address is None:
                missing.append(partition)
            else:
                found.setdefault(address, []).append(partition)
        return found, missing


def _serves(process: _Process, partition: int, now_s: float) -> bool:
    return not _silent(process, now_s) and partition in process.serving.partitions


def _silent(process: _Process, now_s: float) -> bool:
    return now_s - process.heard_at > SILENT_AFTER_S
