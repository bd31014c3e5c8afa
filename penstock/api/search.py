"""Lists of jobs and searches: any filter, any order, page by page."""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

import time

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.filtering import FilterRequest, given_in
from penstock.api.http import Answer, Operation, answer, query, read_json
from penstock.api.intake import TENANT
from penstock.api.jobs import READ_HEADERS, wait_for
from penstock.api.models import AtText, Cursor, JobList, Limit, ListQuery, ReadQuery
from penstock.api.moments import moment_of
from penstock.projections.port import JobsQuery, SearchPage, SearchQuery, Sort

MOST_BYTES = 64 * 1024
LOOKING_S = 1.0
"""How long a call goes on looking for what fills its page. Then the page is what was found."""


class SearchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``sort``: a time, and then the id; ``-`` the latest first. ``cursor``: from the page before, of the same sort.

    ``at``: the jobs as they were at a time (RFC 3339) or a position of the log; the same for each page.
    """

    filter: FilterRequest = FilterRequest()
    sort: Sort = "-created_at"
    limit: Limit = 50
    cursor: Cursor | None = None
    at: AtText | None = None


_SIMPLE = ("state", "queue", "type")
_PAGING = frozenset({"after", "wait_ms", "sort", "limit", "cursor", "at"})


async def list_jobs(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, ListQuery)
    await wait_for(request, deps, asked)
    given = given_in(asked, _PAGING)
    if asked.at is None and asked.sort == "-created_at" and given.keys() <= set(_SIMPLE):
        page = await deps.read_model.list_jobs(
            JobsQuery(tenant=TENANT, limit=asked.limit, cursor=asked.cursor, **given)
        )
        return answer(JobList(page.items, page.next_cursor, page.total))
    wanted = SearchRequest(
        filter=FilterRequest(**given), sort=asked.sort, limit=asked.limit, cursor=asked.cursor, at=asked.at
    )
    return answer(await _found(deps, wanted))


async def search_jobs(request: Request) -> Response:
    deps = deps_of(request)
    await wait_for(request, deps, query(request, ReadQuery))
    asked = await read_json(request, SearchRequest, MOST_BYTES, empty=b"{}")
    return answer(await _found(deps, asked))


async def _found(deps: ApiDeps, asked: SearchRequest) -> JobList:
    wanted = SearchQuery(
        tenant=TENANT,
        filter=asked.filter.plain(),
        sort=asked.sort,
        limit=asked.limit,
        cursor=asked.cursor or "",
        at=None if asked.at is None else await moment_of(deps, asked.at),
    )
    page = await searched(deps, wanted)
    return JobList(page.items, page.next_cursor, page.total)


async def searched(deps: ApiDeps, wanted: SearchQuery) -> SearchPage:
    """One page, full if what fills it is found in time."""
    until_s = time.monotonic() + LOOKING_S
    page = await deps.read_model.search(wanted)
    items = page.items
    while len(items) < wanted.limit and page.next_cursor is not None and time.monotonic() < until_s:
        left = wanted.limit - len(items)
        page = await deps.read_model.search(
            msgspec.structs.replace(wanted, cursor=page.next_cursor, limit=left)
        )
        items = [*items, *page.items]
    return SearchPage(items, page.next_cursor, page.total)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/jobs",
        endpoint=list_jobs,
        summary="List jobs, newest first",
        tag="jobs",
        query=ListQuery,
        headers=READ_HEADERS,
        answers={200: Answer("A page of jobs.", JobList)},
        problems=(422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/jobs/search",
        endpoint=search_jobs,
        summary="Search jobs",
        tag="jobs",
        query=ReadQuery,
        body=SearchRequest,
        body_required=False,
        headers=READ_HEADERS,
        answers={200: Answer("A page of jobs: not the last one as long as it has a cursor.", JobList)},
        problems=(400, 413, 415, 422, 503),
    ),
)
