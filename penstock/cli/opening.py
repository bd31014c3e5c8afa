"""From settings to an open log, and whether a command reads it itself or asks the server that has it open."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from penstock.cli.context import Cli
from penstock.cli.settings import Settings
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.opening import open_log
from penstock.log.port import Log
from penstock.schemas.errors import NotFound, SettingsInvalid, StoreLocked

if TYPE_CHECKING:
    from penstock.log.archive import Archive
    from penstock.log.claims import ClaimStore

_T = TypeVar("_T")


def log_of(settings: Settings, on_fatal: Callable[[BaseException], None] | None = None) -> Log:
    """The log in the settings, with its archive where one is set, not yet entered.

    ``on_fatal`` hears of an embedded log that cannot go on.
    """
    log = _live_log(settings, on_fatal)
    if not settings.archive:
        return log
    from penstock.log.archive_log import ArchivedLog

    return ArchivedLog(log, archive_of(settings))


TRIMMED = "a trimmed log is read together with its archive, PENSTOCK_ARCHIVE"
"""Where a log's beginning is missing: what to do."""


def archive_of(settings: Settings, *, must_exist: bool = False) -> Archive:
    """The archive in the settings. Raises SettingsInvalid where none is set, and as ``open_blobs``."""
    from penstock.log.archive import Archive
    from penstock.log.blobs import open_blobs

    if not settings.archive:
        raise SettingsInvalid("there is no archive: PENSTOCK_ARCHIVE is a folder or s3://bucket/prefix")
    return Archive(open_blobs(settings.archive, must_exist=must_exist), settings.topics.jobs)


def claims_of(settings: Settings) -> ClaimStore | None:
    """The store of bodies that are too large for the log; None where there is none."""
    if not settings.claims_url:
        return None
    from penstock.log.blobs import open_blobs
    from penstock.log.claims import ClaimStore

    return ClaimStore(open_blobs(settings.claims_url), settings.claim_max_bytes)


def _live_log(settings: Settings, on_fatal: Callable[[BaseException], None] | None) -> Log:
    if settings.is_embedded:
        return open_log(settings.log_url, fsync="group" if settings.fsync else "none", on_fatal=on_fatal)
    return open_log(settings.log_url, replication=settings.replication, client=kafka_client(settings))


def kafka_client(settings: Settings) -> dict[str, Any]:
    """TLS and SASL arguments of the Kafka client.

    Raises:
        SettingsInvalid: a certificate file cannot be read.
    """
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        from penstock.log.kafka_options import tls_context

        files = (settings.kafka_ssl_cafile, settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
        try:
            options["ssl_context"] = tls_context(*(None if file is None else str(file) for file in files))
        except OSError as error:
            raise SettingsInvalid(f"kafka_ssl_cafile, _certfile or _keyfile: {error}") from error
    if protocol.startswith("SASL"):
        password = settings.kafka_sasl_password or SecretStr("")
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": password.get_secret_value(),
        }
    return options


@asynccontextmanager
async def existing_log(settings: Settings) -> AsyncGenerator[tuple[Log, Namespace], None]:
    """The log in the settings, open, for a command that looks at what is there.

    Raises:
        NotFound: there is no embedded log; none is made.
        StoreLocked: another process has it open.
    """
    if settings.is_embedded and not (settings.embedded_path / "log").is_dir():
        raise NotFound(
            f"there is no log in {settings.embedded_path} (PENSTOCK_LOG, --log or --data says where it is)"
        )
    async with log_of(settings) as log:
        yield log, await open_namespace(log, settings.topics)


def on_log_or_server(
    cli: Cli, on_log: Callable[[Log, Namespace], Awaitable[_T]], on_server: Callable[[], _T]
) -> _T:
    """Read the log itself where that is possible, else ask the server.

    A cluster's log is read directly. An embedded log belongs to one process: while that runs, it is asked. ``--server``
    always asks the server, ``--log`` always reads the log, ``--data`` names the folder that must have one.
    """
    settings = cli.settings
    if "server" in cli.flags and "log" not in cli.flags:
        return on_server()
    must_read = "log" in cli.flags or not settings.is_embedded
    if not must_read and "data" not in cli.flags and not (settings.embedded_path / "log").is_dir():
        return on_server()

    async def read() -> _T:
        async with existing_log(settings) as (log, namespace):
            return await on_log(log, namespace)

    try:
        return asyncio.run(read())
    except StoreLocked:
        if must_read:
            raise
    if sys.stderr.isatty():
        sys.stderr.write(f"penstock: the log is in use; asking {settings.server}\n")
    return on_server()
