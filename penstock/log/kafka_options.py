"""How to reach a cluster, and the time limits of everything that talks to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import msgspec
from aiokafka.errors import KafkaError

from penstock.log.supervision import asked_to_end
from penstock.schemas.errors import LogUnavailable

_T = TypeVar("_T")


class KafkaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the brokers are and how long to wait for them.

    ``client`` is passed to every aiokafka client as it is: ``security_protocol``, ``ssl_context``,
    ``sasl_mechanism``, ``sasl_plain_username`` and so on.
    """

    bootstrap: str
    client: Mapping[str, Any] = {}
    append_timeout_ms: int = 10_000
    """An append that is not acknowledged by then is unknown."""
    request_timeout_ms: int = 10_000
    """Any other request, connecting included."""
    silence_ms: int = 15_000
    """A tail that waits this long without any answer of a broker raises LogUnavailable."""
    fetch_wait_ms: int = 100
    """A broker holds an empty fetch this long. A newly followed partition may wait as long: brokers answer the
    requests of one connection in order."""

    def connection(self) -> dict[str, Any]:
        """Arguments common to all clients."""
        return {"bootstrap_servers": self.bootstrap.split(","), "retry_backoff_ms": 50, **self.client}


def tls_context(
    ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """A TLS context for ``KafkaOptions.client["ssl_context"]``: own authority and client certificate, if given."""
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file:
        context.load_cert_chain(cert_file, key_file)
    return context


async def within(timeout_ms: int, what: str, work: Awaitable[_T]) -> _T:
    """Await ``work``; LogUnavailable when it fails in Kafka's ways or takes longer: nothing may wait for ever."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await work
    except TimeoutError as error:
        raise LogUnavailable(f"Kafka did not answer within {timeout_ms} ms: {what}.") from error
    except (KafkaError, OSError) as error:
        raise LogUnavailable(f"Kafka failed: {what}: {error}") from error
    except asyncio.CancelledError as error:
        if asked_to_end():
            raise
        raise LogUnavailable(f"Kafka's client gave up: {what}.") from error
