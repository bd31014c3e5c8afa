"""The history of a job that the read model no longer has, out of the archive, as the read model would show it."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core.partition import Folded
from penstock.projections.merge import check_limit
from penstock.projections.port import HistoryItem, HistoryPage
from penstock.projections.rows import KEPT_REFUSED
from penstock.projections.views import history_item
from penstock.schemas.position import parse

_OF_NO_JOB = frozenset({"misrouted", "unknown_job", "quarantined"})


def archived_page(lines: Sequence[Folded], partition: int, limit: int, cursor: str = "") -> HistoryPage:
    """A page of a job's lines: the accepted ones, and the last refused. Raises InvalidCursor, InvalidField."""
    check_limit(limit)
    after = parse(cursor).packed if cursor else -1
    about_the_job = [line for line in lines if line.outcome not in _OF_NO_JOB]
    refused = [line.position for line in about_the_job if line.outcome != "applied"]
    left_out = set(refused[:-KEPT_REFUSED])
    shown = [line for line in about_the_job if line.position > after and line.position not in left_out]
    items = archived_items(shown[:limit], partition)
    return HistoryPage(items, len(refused), items[-1].position if len(shown) > limit else None)


def archived_items(lines: Sequence[Folded], partition: int) -> list[HistoryItem]:
    """Lines as they are shown, each with what became of it."""
    return [
        history_item(partition, line.position, line.time_ms, line.line, line.outcome, line.reason)
        for line in lines
    ]
