"""What whoever logs gives along with a record, apart from what every record has."""

from __future__ import annotations

import logging
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def own_fields(record: logging.LogRecord) -> dict[str, Any]:
    """The record's ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
