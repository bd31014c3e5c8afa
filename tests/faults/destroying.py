"""Steps that damage the log itself: the jobs topic, and the files of the embedded log."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

from penstock.log.embedded import EmbeddedLog
from penstock.schemas.errors import LogCorrupt
from tests.faults import topics
from tests.faults.scenario import Step, on_cluster
from tests.faults.world import ClusterWorld, World


def recreate_jobs_topic(*, refill: bool) -> Step:
    """Delete it and make it anew; with ``refill`` as long as it was, of other records."""

    def act(world: ClusterWorld) -> None:
        bootstrap, topic = world.cluster.bootstrap, world.topics.jobs
        lengths = topics.ends(bootstrap, topic)
        topics.recreate(bootstrap, topic)
        if refill:
            line = json.dumps({"type": "Enqueued", "job": "another", "job_type": "add"}).encode()
            topics.refill(bootstrap, topic, lengths, [line])

    return on_cluster(f"the jobs topic is deleted and made anew{', and filled again' if refill else ''}", act)


def trim_jobs_topic() -> Step:
    """Delete all its records."""

    def act(world: ClusterWorld) -> None:
        bootstrap, topic = world.cluster.bootstrap, world.topics.jobs
        topics.trim(bootstrap, topic, topics.ends(bootstrap, topic))

    return on_cluster("all records of the jobs topic are deleted", act)


def _wal(world: World, name: str) -> Path:
    """The write-ahead file that the embedded log wrote to last."""
    return max((world.roles[name].data / "log").glob("*.log"))


def _backup(world: World, name: str) -> Path:
    return world.folder / f"{name}.backup"


def _keep(world: World, name: str) -> None:
    if not _backup(world, name).exists():
        shutil.copytree(world.roles[name].data, _backup(world, name))


def restore_log(name: str) -> Step:
    """The folder as it was before it was damaged."""

    def act(world: World) -> None:
        shutil.rmtree(world.roles[name].data)
        shutil.copytree(_backup(world, name), world.roles[name].data)

    return Step(f"restore the folder of {name}", act)


def cut_log(name: str, count: int) -> Step:
    """The last bytes are missing, as if the disk had lied about having written them.

    What was under way when its process died was promised to nobody, and may go. ``count`` is what goes with it.
    """

    def act(world: World) -> None:
        _keep(world, name)
        file = _wal(world, name)
        whole = file.stat().st_size
        for under_way in range(0, _MOST_UNDER_WAY, 256):
            os.truncate(file, max(whole - under_way - count, 0))
            if asyncio.run(_lacks_acknowledged(world.roles[name].data, world.folder / "trial")):
                break

    return Step(f"cut {count} bytes off the log of {name}", act)


_MOST_UNDER_WAY = 64 * 1024


async def _lacks_acknowledged(data: Path, trial: Path) -> bool:
    """Whether a log is short of records that it acknowledged, by its own count. It is looked at in a copy."""
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(data / "log", trial / "log")
    shutil.copy(data / "acknowledged", trial)
    try:
        async with EmbeddedLog(trial):
            return False
    except LogCorrupt:
        return True


def half_write(name: str) -> Step:
    """What a crash in the middle of a write leaves: the first half of a batch that nobody was told is written."""

    def act(world: World) -> None:
        file = _wal(world, name)
        # A header as RocksDB writes it (checksum, length, kind) of a record that is longer than what follows.
        with file.open("ab") as wal:
            wal.write(b"\x12\x34\x56\x78" + (900).to_bytes(2, "little") + b"\x01" + bytes(range(100)))

    return Step(f"append half a record to the log of {name}", act)


def damage_log(name: str) -> Step:
    """Some bytes in the middle changed."""

    def act(world: World) -> None:
        _keep(world, name)
        file = _wal(world, name)
        with file.open("r+b") as wal:
            wal.seek(file.stat().st_size // 2)
            wal.write(b"\xff" * 64)

    return Step(f"overwrite 64 bytes in the middle of the log of {name}", act)
