"""One call of the worker protocol after the other: what is sent, and which answers are failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec

from penstock.schemas.claims import Claim, payload_url
from penstock.schemas.errors import ClaimDamaged, ClaimMissing, ClaimsOff, ServerUnreachable
from penstock.workers import http_protocol as protocol

API = "/api/v1/worker"
ANSWER_S = 30.0
"""How long a server may take to answer, the waiting that it was asked for aside."""
FETCH_BODY_S = 120.0
"""As ``ANSWER_S``, for a payload that lies beside the log."""


class Refused(Exception):
    """The server answered with a status that says: not like this."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Calls:
    """Calls to one server.

    Args:
        server, headers, http_transport: as of :class:`~penstock.workers.http_transport.HttpTransport`.
    """

    def __init__(
        self, server: str, headers: Mapping[str, str] | None, http_transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=server.rstrip("/"),
            headers=dict(headers or {}),
            transport=http_transport,
            timeout=ANSWER_S,
        )

    async def post(self, what: str, body: Mapping[str, Any], wait_s: float = 0.0) -> bytes:
        """The body of the answer.

        Raises:
            Refused: the server does not want it like this.
            ServerUnreachable: it did not answer, or not with this.
            ClaimsOff: it has no place for what lies beside the log.
        """
        try:
            response = await self._http.post(
                f"{API}/{what}",
                content=protocol.encode(body),
                headers={"content-type": "application/json"},
                timeout=httpx.Timeout(ANSWER_S + wait_s, connect=10.0),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(error) from error
        if response.status_code == ClaimsOff.status and ClaimsOff.code in response.text:
            raise ClaimsOff
        if response.status_code >= 500:
            raise ServerUnreachable(f"the server answered {response.status_code}")
        if response.status_code >= 400:
            raise Refused(response.status_code, response.text[:500])
        return response.content

    async def payload(self, job: str, claim: Claim) -> bytes:
        """A payload that lies beside the log.

        Raises:
            ClaimMissing, ClaimDamaged: it is not there as it was written.
            ServerUnreachable: the server did not answer, or not with this.
        """
        try:
            response = await self._http.get(payload_url(job), timeout=FETCH_BODY_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(error) from error
        if response.status_code == ClaimMissing.status:
            raise ClaimMissing(f"the server has no payload of job {job}")
        if response.status_code != 200:
            raise ServerUnreachable(f"the server answered {response.status_code} for a payload")
        if len(response.content) != claim.size_bytes:
            raise ClaimDamaged(f"the server's payload of job {job} has another size than its claim")
        return response.content

    async def close(self) -> None:
        await self._http.aclose()


def decoded(decode: Callable[[bytes], Any], answer: bytes) -> Any:
    """Raises ServerUnreachable where it cannot be read."""
    try:
        return decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServerUnreachable(f"the server's answer cannot be read: {error}") from error


def _unreachable(error: Exception) -> ServerUnreachable:
    return ServerUnreachable(f"the server does not answer: {str(error) or type(error).__name__}")
