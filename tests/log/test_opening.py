"""Which setting opens which log."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.log.embedded import EmbeddedLog
from penstock.log.kafka import KafkaLog
from penstock.log.memory import MemoryLog
from penstock.log.opening import open_log
from penstock.schemas.errors import SettingsInvalid


def test_each_kind(tmp_path: Path) -> None:
    assert isinstance(open_log("memory:"), MemoryLog)
    assert isinstance(open_log("memory"), MemoryLog)
    assert isinstance(open_log(f"embedded:{tmp_path}", fsync="none"), EmbeddedLog)
    assert isinstance(open_log("kafka://one:9092,[::1]:9093/"), KafkaLog)


@pytest.mark.parametrize(
    "spec", ["", "kafka", "kafka:", "kafka://", "kafka:one:9092", "kafka://one", "kafka://one:9092,", "embedded:", "redis://x"]
)  # fmt: skip
def test_what_cannot_be_read_says_what_can(spec: str) -> None:
    with pytest.raises(SettingsInvalid):
        open_log(spec)
