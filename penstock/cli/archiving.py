"""From settings to archives: opened, and kept up with the log by services."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from penstock.cli.health import Numbers
from penstock.cli.roles import Service
from penstock.cli.settings import Settings
from penstock.log.archive_log import ArchivedLog
from penstock.log.archiver import SLICE_S, Archiver
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.schemas.errors import SettingsInvalid
from penstock.state.trimming import Trimmer, Trimming

if TYPE_CHECKING:
    from penstock.state.snapshots import Snapshots


def archived(log: Log) -> ArchivedLog:
    """The log with its archive. Raises SettingsInvalid where none is set."""
    if not isinstance(log, ArchivedLog):
        raise SettingsInvalid("there is no archive: PENSTOCK_ARCHIVE is a folder or s3://bucket/prefix")
    return log


def archiver_of(
    settings: Settings, log: ArchivedLog, namespace: Namespace, *, alone: bool = False
) -> Archiver:
    """What copies the log into its archive, as the settings want it; not yet entered.

    ``alone``: nobody else needs this process's time.
    """
    return Archiver(
        log,
        namespace,
        after_ms=settings.archive_after,
        segment_bytes=settings.archive_segment_bytes,
        pause_s=0 if alone else SLICE_S,
    )


def snapshots_of(settings: Settings, *, must_exist: bool = False) -> Snapshots | None:
    """The snapshots in the settings; None where none are wanted. The log must reach back to the oldest that is kept.

    Raises:
        NotFound: the folder must exist, and does not.
    """
    if not settings.snapshots:
        return None
    from penstock.log.blobs import open_blobs
    from penstock.state.snapshots import Snapshots

    return Snapshots(
        open_blobs(settings.snapshots, must_exist=must_exist),
        every_s=settings.snapshot_every_s,
        keep=settings.snapshot_keep,
    )


async def start_archiving(
    stack: AsyncExitStack, settings: Settings, log: Log, namespace: Namespace
) -> tuple[list[Service], Numbers]:
    """Start what archives and trims, as far as the settings say so; its numbers, for metrics."""
    if not isinstance(log, ArchivedLog):
        return [], dict
    archiver = await stack.enter_async_context(archiver_of(settings, log, namespace))
    services: list[Service] = [archiver]
    trimmer: Trimmer | None = None
    if settings.trim_after is not None:
        trimming = Trimming(log, namespace.topics, snapshots_of(settings))
        trimmer = Trimmer(trimming, namespace.topics, after_ms=settings.trim_after)
        services.append(await stack.enter_async_context(trimmer))

    def numbers() -> dict[str, float]:
        archived = archiver.numbers
        found: dict[str, float] = {
            "penstock_archive_segments": archived.segments,
            "penstock_archive_records": archived.records,
            "penstock_archive_value_bytes": archived.value_bytes,
            "penstock_archive_stored_bytes": archived.stored_bytes,
            "penstock_archive_failures": archived.failures,
        }
        if trimmer is not None:
            found["penstock_trim_trimmed_offsets"] = trimmer.numbers.trimmed_offsets
            found["penstock_trim_failures"] = trimmer.numbers.failures
        return found

    return services, numbers
