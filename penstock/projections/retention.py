"""What is left of forgotten jobs in the views, and how it leaves them.

``Forgotten`` takes a job out of lists, counts and look-ups at once; its history stays, for that is what one asks about
long afterwards. How long is a matter of each projection and of no digest: each forgotten life leaves a row by the log's
time of its end here, and a sweep removes the histories whose time is up, a few at a time. A later job under the same id
keeps its own history: only lines up to the ``Forgotten`` go.
"""

from __future__ import annotations

from penstock.log.kv import Batch, KeyValueStore
from penstock.projections.rows import (
    FORGOTTEN,
    HISTORY,
    REFUSED,
    RefusedSummary,
    decode_lines,
    decode_summary,
    encode,
    job_prefix,
    number,
)

JOBS_A_TURN = 100
SWEEP_EVERY_S = 30.0


def forgotten_key(time_ms: int, position: int) -> bytes:
    """Where a forgotten life is noted: log time and packed position of its ``Forgotten``."""
    return number(max(0, time_ms)) + number(position)


def remove_histories(kv: KeyValueStore, before_ms: int, limit: int = JOBS_A_TURN) -> int:
    """Remove the histories of up to ``limit`` lives forgotten before a log time, oldest first; how many there were."""
    last: dict[str, int] = {}
    found = 0
    batch = kv.batch()
    for key, job in kv.scan(FORGOTTEN, b"", number(max(0, before_ms)), limit=limit):
        found += 1
        position = int.from_bytes(key[8:], "big")
        last[job.decode()] = max(position, last.get(job.decode(), -1))
        batch.delete(FORGOTTEN, key)
    for job_key, position in last.items():
        prefix = job_prefix(job_key)
        _remove_lines(kv, batch, prefix, position)
        _remove_refused(kv, batch, prefix, position)
    if found:
        kv.write(batch)
    return found


def _remove_lines(kv: KeyValueStore, batch: Batch, prefix: bytes, position: int) -> None:
    for key, data in kv.scan(HISTORY, prefix, prefix + number(position + 1)):
        batch.delete(HISTORY, key)
        # One commit's lines stand together: those of the next life may be among them.
        kept = [line for line in decode_lines(data) if line.position > position]
        if kept:
            batch.put(HISTORY, prefix + number(kept[0].position), encode(kept))


def _remove_refused(kv: KeyValueStore, batch: Batch, prefix: bytes, position: int) -> None:
    data = kv.get(REFUSED, prefix)
    if data is None:
        return
    summary = decode_summary(data)
    kept = [refused for refused in summary.positions if refused > position]
    if len(kept) == len(summary.positions):
        return
    for refused in summary.positions[: len(summary.positions) - len(kept)]:
        batch.delete(REFUSED, prefix + number(refused))
    if kept:
        # Those that are counted and no longer listed are older than the ones listed.
        batch.put(REFUSED, prefix, encode(RefusedSummary(len(kept), kept)))
    else:
        batch.delete(REFUSED, prefix)
