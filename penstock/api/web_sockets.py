"""WebSockets as uvicorn speaks them, with a farewell that also reaches those who did not read.

uvicorn holds back everything while a connection has no room, the close frame too, so whoever is cut off because it does
not read would never see why. But a close frame is small, and the last thing that is sent: here it goes behind what is
unread at once. One that begins to read within :data:`LINGER_S` finds it there. After that nothing is kept for it, and
what it sees is a connection that ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_S = 10.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    _drop: asyncio.TimerHandle | None = None

    async def send(self, message: Any) -> None:
        if self.close_sent:
            # By a ping that was not answered: the application has yet to hear of it.
            raise ClientDisconnected
        if message["type"] == "websocket.close":
            self.writable.set()
            await super().send(message)
            self._drop_later()
        else:
            await super().send(message)

    def keepalive_timeout(self) -> None:
        if self.writable.is_set():
            super().keepalive_timeout()
            self._drop_later()
        else:
            # The ping waits behind what is unread, and how long that may be is for the one who sends to say.
            self.pong_timer = None
            self.schedule_ping()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._drop is not None:
            self._drop.cancel()
        super().connection_lost(exc)

    def _drop_later(self) -> None:
        if self._drop is None and self.close_sent:
            self._drop = self.loop.call_later(LINGER_S, self.transport.abort)
