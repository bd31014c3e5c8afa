"""Times as text, as every answer and every log has them: RFC 3339, UTC, with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=1_024)
def time_text(time_ms: int) -> str:
    """Of Unix ms. Texts sort as the times do."""
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC).isoformat()[:19]}.{time_ms % 1000:03d}Z"


def text_time_ms(text: str) -> int:
    """Unix ms of such a text."""
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000
