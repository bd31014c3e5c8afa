"""From a setting to a log: ``embedded:PATH``, ``kafka://host:port,host:port`` or ``memory:``."""

from __future__ import annotations

from typing import Any

from penstock.log.port import Log
from penstock.schemas.errors import SettingsInvalid


def open_log(spec: str, **options: Any) -> Log:
    """The log that ``spec`` names, not yet entered. ``options`` go to its constructor; what it needs is imported here.

    Raises:
        SettingsInvalid: the specification cannot be read.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "embedded" and rest:
        from penstock.log.embedded import EmbeddedLog

        return EmbeddedLog(rest, **options)
    if colon and kind == "kafka" and rest.startswith("//") and rest[2:].strip("/"):
        from penstock.log.kafka import KafkaLog

        return KafkaLog(_bootstrap(spec, rest[2:]), **options)
    if spec in ("memory", "memory:"):
        from penstock.log.memory import MemoryLog

        return MemoryLog(**options)
    raise SettingsInvalid(
        f"The log {spec!r} is none of embedded:PATH, kafka://HOST:PORT[,HOST:PORT...] and memory:."
    )


def _bootstrap(spec: str, rest: str) -> str:
    servers = rest.rstrip("/").split(",")
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise SettingsInvalid(
                f"The log {spec!r} must name each broker as HOST:PORT; {server!r} is not that."
            )
    return ",".join(servers)
