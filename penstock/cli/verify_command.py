"""``penstock verify``: fold the log anew and compare with every digest that was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from penstock.cli.context import Cli, DataFolder, LogUrl, Output, Server, cli_of
from penstock.cli.opening import TRIMMED, on_log_or_server
from penstock.cli.server_log import decode_exported, export_call, exported_header, partition_statuses
from penstock.cli.verification import Expected, PartitionProof, PartitionVerifier
from penstock.log.namespace import Namespace
from penstock.log.port import Headers, Log, Record
from penstock.schemas.codec import bundle
from penstock.schemas.copies import COPY_HEADER
from penstock.schemas.errors import DigestMismatch, HistoryChanged, LogUnavailable, StoreLocked
from penstock.state import audit

_POLL_MS = 1_000
_SILENT_POLLS = 30
_COLUMNS = ("partition", "records", "lines", "refused", "quarantined", "state digest")
_RESULT_COLUMNS = ("compared", "")


def register(app: typer.Typer) -> None:
    """Add this command to ``app``."""
    app.command()(verify)


def verify(
    ctx: typer.Context,
    output: Output = None,
    server: Server = None,
    log: LogUrl = None,
    data: DataFolder = None,
) -> None:
    """Fold the whole log anew, twice, and compare with all recorded digests. Exit code 7 when any differs."""
    cli = cli_of(ctx, output, server=server, log=log, data=data)

    async def on_log(opened: Log, namespace: Namespace) -> list[PartitionProof]:
        return await verify_log(opened, namespace, cli.settings.data)

    proofs = on_log_or_server(cli, on_log, lambda: verify_server(cli))
    _print(cli, proofs)
    wrong = [proof.partition for proof in proofs if not proof.ok]
    if wrong:
        raise DigestMismatch(f"partitions that do not verify: {', '.join(map(str, wrong))}")


def _print(cli: Cli, proofs: list[PartitionProof]) -> None:
    if cli.printer.json:
        cli.printer.value(
            {
                "ok": all(proof.ok for proof in proofs),
                "partitions": [{**_plain(proof), "ok": proof.ok} for proof in proofs],
            }
        )
        return
    rows = [
        (
            proof.partition,
            proof.records,
            proof.lines,
            proof.refused,
            proof.quarantined,
            proof.state_digest[:16],
            (proof.log_digest or proof.export_chain)[:16],
            proof.compared,
            "OK" if proof.ok else "MISMATCH",
        )
        for proof in proofs
    ]
    # The one is over records, the other over lines: they are never alike.
    chain = "export chain" if any(proof.export_chain for proof in proofs) else "log digest"
    cli.printer.table((*_COLUMNS, chain, *_RESULT_COLUMNS), rows)
    if not any(proof.compared or proof.problems for proof in proofs):
        cli.printer.text(
            "Nobody had recorded a digest to compare with: only two folds of the log were compared."
        )
    for proof in proofs:
        for problem in proof.problems:
            cli.printer.text(f"partition {proof.partition}: {problem}")


def _plain(proof: PartitionProof) -> dict[str, Any]:
    return {name: getattr(proof, name) for name in PartitionProof.__slots__}


# From the log itself


async def verify_log(log: Log, namespace: Namespace, data: Path) -> list[PartitionProof]:
    """Fold what the log has now; compare with the folders in ``data`` that no process has open."""
    topics = namespace.topics
    proofs: list[PartitionProof] = []
    for partition in range(topics.partitions):
        expected, damaged = _recorded(log, namespace, data, partition)
        verifier = PartitionVerifier(partition, topics.partitions, expected)
        bounds = await log.bounds(topics.jobs, partition)
        if bounds.start > 0:
            verifier.proof.problems.append(
                f"the log begins at offset {bounds.start}: its beginning is missing ({TRIMMED})"
            )
        silent = 0
        next_offset = bounds.start
        async with log.tail({(topics.jobs, partition): bounds.start}) as tail:
            while next_offset < bounds.end:
                records = await tail.poll(_POLL_MS)
                silent = 0 if records else silent + 1
                if silent >= _SILENT_POLLS:
                    raise LogUnavailable(
                        f"partition {partition} could not be read beyond offset {next_offset}"
                    )
                for record in records:
                    verifier.record(record)
                    next_offset = record.offset + 1
        proof = verifier.finish()
        proof.problems.extend(damaged)
        proofs.append(proof)
    return proofs


def _recorded(log: Log, namespace: Namespace, data: Path, partition: int) -> tuple[list[Expected], list[str]]:
    """Digests that the folders hold, and what is wrong with the folders themselves."""
    from penstock.cli.folders import KINDS, StoredFold

    expected: list[Expected] = []
    damaged: list[str] = []
    for kind in KINDS:
        if not kind.exists(data, partition):
            continue
        try:
            found = StoredFold.read(kind, data, log, namespace, partition)
        except StoreLocked:
            # A running process has it; its digests are compared through the server, or when it is stopped.
            continue
        except HistoryChanged as error:
            damaged.append(f"{kind.path(data)}: {error.message}")
            continue
        expected.extend(found.digests)
        if found.recomputed != found.digest:
            damaged.append(
                f"{kind.name}: the stored rows have digest {found.recomputed}, recorded is {found.digest}: damaged"
            )
    return expected, damaged


# From a server


def verify_server(cli: Cli) -> list[PartitionProof]:
    """Check the chain of the server's audit export, fold its lines, and compare with the server's digests."""
    with cli.client() as client:
        # Before the export, so that it holds everything that these digests cover.
        statuses = partition_statuses(client)
        verifiers = {int(status["partition"]): _verifier(status, len(statuses)) for status in statuses}
        report = audit.verify_export(_folding(client.stream_lines(export_call()), verifiers))
    proofs = [verifiers[partition].finish() for partition in sorted(verifiers)]
    for proof in proofs:
        # An export has lines and not records, so its own chain stands for the log's.
        proof.log_digest = ""
        proof.export_chain = report.final.get(str(proof.partition), "")
        if not report.ok:
            proof.problems.append(f"line {report.line} of the export: {report.problem}")
        elif report.header is not None and report.header.ranges[str(proof.partition)][0] > 0:
            proof.problems.append("the beginning of the log is missing")
    return proofs


def _verifier(status: dict[str, Any], partitions: int) -> PartitionVerifier:
    digests = [Expected(int(offset), "server", digest) for offset, digest in status["digests"].items()]
    if status["next_offset"] > 0:
        digests.append(Expected(status["next_offset"], "server", status["digest"]))
    return PartitionVerifier(status["partition"], partitions, digests)


def _folding(lines: Iterable[bytes], verifiers: dict[int, PartitionVerifier]) -> Iterator[bytes]:
    """Pass lines of an export on, and fold their records on the way."""
    partition, offset, time_ms = -1, -1, 0
    headers: Headers = ()
    gathered: list[bytes] = []

    def fold() -> None:
        if gathered and partition in verifiers:
            value = bundle(gathered)
            verifiers[partition].record(Record("", partition, offset, time_ms, True, None, value, headers))
        gathered.clear()

    for text in lines:
        yield text
        # Only asked for the next line once this one was found right.
        if text.startswith(b'{"audit"'):
            continue
        position, line_time_ms, data = decode_exported(text)
        if (position.partition, position.offset) != (partition, offset):
            fold()
            partition, offset, time_ms = position.partition, position.offset, line_time_ms
            header = exported_header(text)
            headers = () if header is None else ((COPY_HEADER, header),)
        gathered.append(data)
    fold()
