"""What the log itself says became of every job: an audit export, folded line by line."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from penstock.core.partition import Folded, PartitionFold
from penstock.schemas.codec import bundle
from penstock.schemas.events import Enqueued, Succeeded
from tests.acceptance.processes import penstock


class Ledger(NamedTuple):
    """By job id: how often an ``Enqueued`` and a ``Succeeded`` were accepted, and the state in the end."""

    begun: Counter[str]
    succeeded: Counter[str]
    states: Mapping[str, str]

    @property
    def ends(self) -> Counter[str]:
        """Jobs by state."""
        return Counter(self.states.values())


def ledger_of(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Ledger:
    """Export the log with ``penstock audit export OPTIONS``, check its chain, and fold it."""
    file = folder / "ledger.ndjson"
    for command in (("export", "--file", str(file), *options), ("verify", str(file))):
        done = penstock("audit", *command, folder=folder, environment=environment)
        assert done.returncode == 0, done.stderr
    begun: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    states: dict[str, str] = {}
    for line in _folded(file):
        if line.outcome != "applied" or line.after is None:
            continue
        states[line.after.id] = line.after.state
        begun[line.after.id] += isinstance(line.event, Enqueued)
        succeeded[line.after.id] += isinstance(line.event, Succeeded)
    return Ledger(+begun, +succeeded, states)


def _folded(file: Path) -> Iterator[Folded]:
    with file.open("rb") as stream:
        header = json.loads(next(stream))
        items = [item for item in map(json.loads, stream) if "audit" not in item]
    for partition, lines in groupby(items, key=lambda item: item["partition"]):
        rows: dict[bytes, bytes] = {}
        fold = PartitionFold(partition, header["partitions"], rows.get)
        for offset, record in groupby(lines, key=lambda item: item["offset"]):
            found = list(record)
            value = bundle([_data(item) for item in found])
            yield from fold.fold(offset, found[0]["time"], True, value)
            for row, data in fold.take_changes().rows:
                if data is None:
                    rows.pop(row, None)
                else:
                    rows[row] = data


def _data(item: dict[str, str]) -> bytes:
    return b64decode(item["event_base64"]) if "event_base64" in item else item["event"].encode()
