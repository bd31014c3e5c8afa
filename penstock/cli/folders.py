"""The folders that roles keep under ``PENSTOCK_DATA``, and reading the digests that stand in them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from penstock.cli.verification import Expected
from penstock.core.rows import FOLD_VERSION
from penstock.log.namespace import Namespace
from penstock.log.port import Log
from penstock.orchestrator import rows as orchestrator_rows
from penstock.orchestrator.service import LAYOUT as ORCHESTRATOR_LAYOUT
from penstock.orchestrator.service import shared_layout
from penstock.projections import rows as projection_rows
from penstock.state.partition_store import PartitionStore, StoreIdentity


class FolderKind(NamedTuple):
    """A role's folder: one sub-folder a partition, each a :class:`~penstock.state.partition_store.PartitionStore`."""

    name: str
    families: tuple[str, ...]
    layout: int
    prefix: str = ""
    """What stands before the partition's number in the sub-folder's name."""

    def path(self, data: Path) -> Path:
        """The role's folder."""
        return data / self.name

    def store(self, data: Path, partition: int) -> Path:
        """Where the partition's store is."""
        return self.path(data) / f"{self.prefix}{partition}"

    def open(self, folder: Path, identity: StoreIdentity) -> PartitionStore:
        """A partition's store below the role's folder, ready to be folded with all the rows that belong in it.

        Raises:
            StoreLocked: a process has it open.
            HistoryChanged: it is the fold of another log.
        """
        path = folder / f"{self.prefix}{identity.partition}"
        store = PartitionStore.open(path, identity=identity, extra=self.families, layout=self.layout)
        if orchestrator_rows.BACKLOG in self.families:
            orchestrator_rows.Index.of(store)
        return store

    def exists(self, data: Path, partition: int) -> bool:
        """Whether there is a fold of this version."""
        return (self.store(data, partition) / f"fold-{FOLD_VERSION}-{self.layout}").is_dir()


ORCHESTRATOR = FolderKind("orchestrator", tuple(orchestrator_rows.FAMILIES), ORCHESTRATOR_LAYOUT)
PROJECTION = FolderKind("projection", tuple(projection_rows.FAMILIES), projection_rows.LAYOUT, "partition-")
NODE = FolderKind("node", (*ORCHESTRATOR.families, *PROJECTION.families), shared_layout(PROJECTION.layout))
KINDS = (NODE, PROJECTION, ORCHESTRATOR)


class StoredFold(NamedTuple):
    """Digests of a stored fold: as recorded, and ``recomputed`` from its rows."""

    digest: str
    recomputed: str
    digests: list[Expected]

    @classmethod
    def read(cls, kind: FolderKind, data: Path, log: Log, namespace: Namespace, partition: int) -> Self:
        """Read a folder that exists.

        Raises:
            StoreLocked: a process has it open.
            HistoryChanged: it is the fold of another log.
        """
        topics = namespace.topics
        identity = StoreIdentity(
            log.cluster_id, topics.jobs, partition, topics.partitions, namespace.generation
        )
        with kind.open(kind.path(data), identity) as store:
            digests = [
                Expected(offset, kind.name, recorded.state.hex(), recorded.log.hex())
                for offset, recorded in store.all_recorded_digests()
            ]
            if store.next_offset > 0:
                digests.append(Expected(store.next_offset, kind.name, store.digest, store.log_digest))
            return cls(store.digest, store.recompute_digest(), digests)
