"""What a worker and its child processes say to each other: one JSON line a message, on the child's stdin and stdout."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from penstock.schemas.events import NULL
from penstock.schemas.messages import Delivery
from penstock.workers.outcome import StopReason

MAX_LINE_BYTES = 16 << 20


# To the child


class Setup(Struct, frozen=True, kw_only=True, tag="setup"):
    """The first message: what to load, from where, and the level of the logger ``root``."""

    apps: tuple[str, ...]
    types: frozenset[str]
    path: tuple[str, ...]
    level: int


class Begin(Struct, frozen=True, tag="begin"):
    """Run this job. Comes only when the one before has ended."""

    delivery: Delivery


class Stop(Struct, frozen=True, tag="stop"):
    """The job is to stop."""

    lease: str
    reason: StopReason
    detail: str = ""


class Kept(Struct, frozen=True, tag="kept"):
    """Progress ``number`` is written, or, with an ``error``, will not be: the lease is lost."""

    number: int
    error: str = ""


ToChild = Setup | Begin | Stop | Kept


# From the child


class Ready(Struct, frozen=True, tag="ready"):
    """It has loaded everything and waits for jobs."""


class Refused(Struct, frozen=True, tag="refused"):
    """It cannot load the tasks; it ends."""

    message: str


class Told(Struct, frozen=True, kw_only=True, tag="told"):
    """Progress of the job that runs."""

    number: int
    percent: float | None
    message: str
    saves: bool
    """Whether there is a checkpoint."""
    checkpoint: Raw


class Ended(Struct, frozen=True, tag="ended"):
    """The job's attempt has ended: the line that says how, as for the jobs log. A large ``result`` goes beside it."""

    line: Raw
    result: Raw = NULL


class Logged(Struct, frozen=True, kw_only=True, tag="logged"):
    """A record for the worker's log."""

    logger: str
    level: int
    text: str
    extra: dict[str, Any]


FromChild = Ready | Refused | Told | Ended | Logged

encode = msgspec.json.Encoder().encode
"""A message as a line, without its end."""

decode_to_child: msgspec.json.Decoder[ToChild] = msgspec.json.Decoder(ToChild)
decode_from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
