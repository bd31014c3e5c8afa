"""Which rules a log follows, who could follow newer ones, and asking for them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penstock.core.rules import RULES, newest
from penstock.log.hearing import LISTEN_MS, Heard, listen
from penstock.log.namespace import ask_for_rules, control_records, wanted_rules
from penstock.log.port import Log
from penstock.schemas.errors import Conflict
from penstock.schemas.topics import Topics


class LiveProcess(Struct, frozen=True):
    """A process that folds the log, and the highest version of the rules that it has."""

    kind: Literal["orchestrator", "projection"]
    name: str
    incarnation: str
    rules: int


class RulesStatus(Struct, frozen=True):
    """``partitions`` are those that somebody leads, each with the version in force; ``wanted`` was asked for last."""

    wanted: int
    partitions: dict[int, int]
    processes: list[LiveProcess]

    def all_at(self, version: int, partitions: int) -> bool:
        """Whether each of so many partitions is led and follows these rules, or later ones."""
        return len(self.partitions) == partitions and min(self.partitions.values()) >= version


async def rules_status(log: Log, topics: Topics, listen_ms: int = LISTEN_MS) -> RulesStatus:
    """Listen for so long who is alive, and read what is wanted. Raises LogUnavailable."""
    heard = await listen(log, topics, listen_ms)
    wanted = 1
    async for record in control_records(log, topics):
        wanted = max(wanted, wanted_rules(record.value))
    return RulesStatus(wanted, _in_force(heard), _processes(heard))


def _in_force(heard: Heard) -> dict[int, int]:
    found: dict[int, int] = {}
    for beat in heard.orchestrators.values():
        for partition, version in beat.active_rules.items():
            # While leadership changes hands two may name a partition; rules only go up.
            found[partition] = max(version, found.get(partition, 0))
    return dict(sorted(found.items()))


def _processes(heard: Heard) -> list[LiveProcess]:
    beats, servings = heard.orchestrators.values(), heard.projections.values()
    found = [LiveProcess("orchestrator", beat.orchestrator, beat.incarnation, beat.rules) for beat in beats]
    found += [LiveProcess("projection", one.projection, one.incarnation, one.rules) for one in servings]
    return sorted(found, key=lambda process: (process.kind, process.name, process.incarnation))


async def want_rules(
    log: Log,
    topics: Topics,
    version: int,
    actor: str,
    *,
    known: int = newest(RULES),
    listen_ms: int = LISTEN_MS,
) -> RulesStatus:
    """Ask that all partitions follow these rules; their leaders write it, within seconds.

    Args:
        known: the highest version that the asking program has.

    Raises:
        Conflict: a live process, or this one, lacks them; the message names all that do. Or nobody is there to do it.
        LogUnavailable, AppendUnknown: the log does not answer.
    """
    if version > known:
        raise Conflict(f"this program knows no rules above {known}: upgrade it first")
    status = await rules_status(log, topics, listen_ms)
    lacking = [process for process in status.processes if process.rules < version]
    if lacking:
        raise Conflict(
            f"rules {version} are not supported by "
            + ", ".join(f"{process.kind} {process.name} (up to {process.rules})" for process in lacking)
            + ": upgrade every process first",
            lacking=[process.name for process in lacking],
        )
    if not status.partitions:
        raise Conflict("no orchestrator that leads is alive: there is nobody to activate rules")
    if status.wanted < version:
        await ask_for_rules(log, topics, version, actor)
    return status
