"""Logging of a process: readable text, or one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import msgspec

from penstock.schemas.times import time_text
from penstock.workers.log_fields import own_fields

_NOISY = ("aiokafka", "httpx", "httpcore", "asyncio", "uvicorn.error")
HANDLER_NAME = "penstock"
_encode = msgspec.json.Encoder(enc_hook=str).encode


def _time(record: logging.LogRecord) -> str:
    return time_text(int(record.created * 1_000))


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...extra fields, "error"}``; time in RFC 3339 UTC."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in own_fields(record).items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        try:
            return _encode(fields).decode()
        except (TypeError, ValueError, RecursionError):
            # A field that JSON cannot say must not cost the line.
            return _encode({name: str(value) for name, value in fields.items()}).decode()


class TextFormatter(logging.Formatter):
    """``time level logger message key=value ...``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in own_fields(record).items())
        text = f"{_time(record)} {record.levelname.lower():7} {record.name}: {record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up(level: str, style: str, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr) from ``level`` on, as ``text`` or ``json``. Replaces what it set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    handler.set_name(HANDLER_NAME)
    root = logging.getLogger()
    for old in [known for known in root.handlers if known.get_name() == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _NOISY:
        # Libraries' own chatter tells an operator nothing unless one looks for it.
        quiet = logging.DEBUG if level == "debug" else max(logging.WARNING, root.level)
        logging.getLogger(name).setLevel(quiet)
