"""What is said to the API and how its answers are read: everything of a client but the sending.

An operation is a generator: it yields a :class:`Call` (send it) or a :class:`Pause` (wait), is sent back an
:class:`Answer`, and returns its result. It does no I/O and reads no clock, so the blocking and the asynchronous client
in :mod:`penstock.client.http` and :mod:`penstock.client.http_async` drive the very same operations, retries included.

A call is repeated after a connection error or a 503, as long as the pauses sum up to less than ``patience_ms``. Every
write carries ids that were made before it was first sent, so a repeat is a duplicate and never a second job.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import msgspec

from penstock.client.bulk import NOTHING_SENT, BulkResult, Json, bulk_parts
from penstock.client.identity import with_id
from penstock.client.idgen import new_id
from penstock.client.requests import OwnOptions, plain, request_fields
from penstock.core.job_state import TERMINAL
from penstock.schemas.errors import InvalidCursor, JobNotFound, PenstockError, ServerUnreachable
from penstock.schemas.position import Position, parse_token, token

_encode = msgspec.json.Encoder().encode

DEFAULT_SERVER = "http://127.0.0.1:8700"
API = "/api/v1"
POSITION_HEADER = "penstock-position"
KEY_HEADER = "idempotency-key"
JSON_TYPE = "application/json"
NDJSON_TYPE = "application/x-ndjson"

PAGE_JOBS = 200
FIRST_PAUSE_MS = 100
LONGEST_PAUSE_MS = 5_000
LONG_POLL_MS = 20_000
"""How long one call waits for a job's end."""


class Call(NamedTuple):
    """A request to send. ``path`` begins with a slash; ``body`` None sends none."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()


class Pause(NamedTuple):
    """Wait this many milliseconds."""

    pause_ms: int


class Answer(NamedTuple):
    """What came back; header names in lower case. ``unreached`` is the reason why nothing did."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    unreached: str = ""


Steps = Generator["Call | Pause", "Answer | None", Any]


def error_classes() -> dict[str, type[PenstockError]]:
    """Every error of the tree by its code; the root of those that share one."""
    found: dict[str, type[PenstockError]] = {}
    waiting: list[type[PenstockError]] = [PenstockError]
    while waiting:
        kind = waiting.pop(0)
        found.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    return found


_PROBLEM_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "instance"})


def error_of(answer: Answer) -> PenstockError:
    """The error that an answer of status 400 or above tells of."""
    problem = _object_or_none(answer.body)
    if problem is None or "code" not in problem:
        if answer.status in (502, 503, 504):
            return ServerUnreachable(
                f"the server answered {answer.status} and no reason", status=answer.status
            )
        return PenstockError(f"the server answered {answer.status} and no reason", status=answer.status)
    kind = error_classes().get(str(problem["code"]), PenstockError)
    details = {name: value for name, value in problem.items() if name not in _PROBLEM_MEMBERS}
    return kind(str(problem.get("detail") or problem.get("title") or "") or None, **details)


def _object_or_none(body: bytes) -> Json | None:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return cast("Json", decoded) if isinstance(decoded, dict) else None


class Calls:
    """The operations of one client.

    A read waits until the read model has folded every write that this client made before it.

    Args:
        server: where the API is, only to say so in errors.
        patience_ms: how long all pauses of one call may be together before its error is raised.
    """

    def __init__(self, server: str, patience_ms: int = 10_000) -> None:
        self.server = server
        self.patience_ms = patience_ms
        self._written: dict[int, Position] = {}

    # Writing

    def enqueue(self, job_type: str, payload: Any, options: Mapping[str, Any]) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.enqueue`."""
        fields = with_id(request_fields(job_type, payload, options))
        return (yield from self.ask(Call("POST", f"{API}/jobs", body=_encode(fields))))

    def enqueue_many(self, requests: Iterable[Mapping[str, Any]]) -> Generator[Any, Any, BulkResult]:
        """See :meth:`penstock.client.http.Client.enqueue_many`."""
        result = BulkResult()
        for part in bulk_parts(requests):
            answer = NOTHING_SENT
            if part.body:
                answer = yield from self.ask(
                    Call("POST", f"{API}/jobs/bulk", body=part.body, content_type=NDJSON_TYPE)
                )
            result.add(part.result(answer))
        return result

    def change(self, job_id: str, verb: str, fields: Mapping[str, Any]) -> Generator[Any, Any, Json]:
        """Ask one of the verbs of :data:`penstock.client.verbs.VERBS` of a job; a repeat is known by its key."""
        path, key = _job_path(job_id), (KEY_HEADER, new_id())
        if verb == "delete":
            return (yield from self.ask(Call("DELETE", path, headers=(key,))))
        given = {name: value for name, value in fields.items() if value is not None}
        return (yield from self.ask(Call("POST", f"{path}/{verb}", body=_encode(given), headers=(key,))))

    def clone(self, job_id: str, options: Mapping[str, Any]) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.clone`."""
        changes = dict(options)
        job_type, payload = changes.pop("type", None), changes.pop("payload", None)
        fields = request_fields(job_type or "", payload, changes)
        if not job_type:
            del fields["type"]
        # One that is None is dropped, where one that was not given is the first job's.
        dropped = [name for name, value in options.items() if value is None]
        fields.update(dict.fromkeys(name for name in dropped if name not in OwnOptions.__annotations__))
        if fields.keys().isdisjoint(("id", "idempotency_key", "unique", "concurrency_key")):
            # The clone shares the first job's key, and its id has to live where that does.
            key = (yield from self.get(job_id)).get("concurrency_key")
            if key is not None:
                fields["concurrency_key"] = key
        with_id(fields)
        return (yield from self.ask(Call("POST", f"{_job_path(job_id)}/clone", body=_encode(fields))))

    # Reading

    def get(self, job_id: str, at: str = "") -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.get`."""
        return (yield from self._read(_job_path(job_id), at=at))

    def result(self, job_id: str, timeout_ms: int) -> Generator[Any, Any, Any]:
        """See :meth:`penstock.client.http.Client.result`."""
        if timeout_ms:
            yield from self.wait(job_id, timeout_ms)
        return (yield from self._read(f"{_job_path(job_id)}/result"))

    def payload(self, job_id: str) -> Generator[Any, Any, Any]:
        """See :meth:`penstock.client.http.Client.payload`."""
        return (yield from self._read(f"{_job_path(job_id)}/payload"))

    def log_page(
        self, job_id: str, attempt: int, first: int, wait_ms: int, contains: str, level: str
    ) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.log_page`."""
        given = {
            "from": str(first),
            "wait_ms": str(wait_ms) if wait_ms else "",
            "contains": contains,
            "level": level,
        }
        return (yield from self._read(f"{_job_path(job_id)}/attempts/{attempt}/log", **given))

    def sweep_claims(self, older_than_ms: int, dry_run: bool) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.sweep_claims`."""
        return (
            yield from self._asked(
                f"{API}/claims/sweep", {"older_than_ms": older_than_ms, "dry_run": dry_run}
            )
        )

    def history_page(self, job_id: str, cursor: str = "") -> Generator[Any, Any, Json]:
        """One page of a job's history."""
        return (yield from self._read(f"{_job_path(job_id)}/history", cursor=cursor))

    def jobs_page(
        self, cursor: str = "", limit: int = PAGE_JOBS, **filters: str
    ) -> Generator[Any, Any, Json]:
        """One page of jobs, newest first."""
        return (yield from self._read(f"{API}/jobs", cursor=cursor, limit=str(limit), **filters))

    def search_page(
        self,
        filter: Mapping[str, Any],
        sort: str = "",
        cursor: str = "",
        limit: int = PAGE_JOBS,
        at: str = "",
    ) -> Generator[Any, Any, Json]:
        """One page of a search."""
        asked = {"filter": as_json(filter), "limit": limit}
        given = {name: value for name, value in (("sort", sort), ("cursor", cursor), ("at", at)) if value}
        return (yield from self._asked(f"{API}/jobs/search", {**asked, **given}))

    def history(self, job_id: str) -> Generator[Any, Any, list[Json]]:
        """See :meth:`penstock.client.http.Client.history`."""
        items: list[Json] = []
        cursor = ""
        while True:
            page = yield from self.history_page(job_id, cursor)
            items.extend(page["items"])
            cursor = page.get("next_cursor") or ""
            if not cursor:
                return items

    def resource(self, name: str, **params: str) -> Generator[Any, Any, Any]:
        """What ``GET /api/v1/<name>`` answers."""
        return (yield from self._read(f"{API}/{name}", **params))

    def counts(self, at: str, batch: str | None, workflow: str | None) -> Generator[Any, Any, Any]:
        """See :meth:`penstock.client.http.Client.counts`."""
        return (yield from self.resource("counts", at=at, batch=batch or "", workflow=workflow or ""))

    def wait(self, job_id: str, timeout_ms: int) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.wait`."""
        left_ms = timeout_ms
        while True:
            wait_ms = min(left_ms, LONG_POLL_MS)
            job = yield from self._read(_job_path(job_id), until="finished", wait_ms=str(wait_ms))
            if job["state"] in TERMINAL:
                return job
            left_ms -= wait_ms
            if left_ms <= 0:
                raise TimeoutError(f"job {job_id} is {job['state']} after {timeout_ms / 1000:g} s")

    def tell_worker(self, worker: str, verb: str) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.drain_worker` and ``stop_worker``."""
        return (yield from self.ask(Call("POST", f"{API}/workers/{quote(worker, safe='')}/{verb}")))

    # Many jobs

    def operate(
        self, action: str, ids: Iterable[str] | None, filter: Mapping[str, Any] | None, args: Mapping[str, Any],
        *, dry_run: bool,
    ) -> Generator[Any, Any, Json]:  # fmt: skip
        """See :meth:`penstock.client.http.Client.operate`."""
        asked: Json = {"action": action, "args": as_json(args), "dry_run": dry_run}
        if ids is not None:
            asked["ids"] = list(ids)
        if filter is not None:
            asked["filter"] = as_json(filter)
        key = (KEY_HEADER, new_id())
        return (yield from self.ask(Call("POST", f"{API}/operations", body=_encode(asked), headers=(key,))))

    def cancel_operation(self, operation_id: str) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.cancel_operation`."""
        path = f"{API}/operations/{quote(operation_id, safe='')}"
        return (yield from self.ask(Call("DELETE", path, headers=((KEY_HEADER, new_id()),))))

    def operation(self, operation_id: str, timeout_ms: int) -> Generator[Any, Any, Json]:
        """See :meth:`penstock.client.http.Client.operation`."""
        path, paused_ms, pause_ms = f"{API}/operations/{quote(operation_id, safe='')}", 0, FIRST_PAUSE_MS
        while True:
            found = yield from self._read(path)
            if found["state"] in TERMINAL or not timeout_ms:
                return found
            if paused_ms >= timeout_ms:
                raise TimeoutError(
                    f"operation {operation_id} is {found['state']} after {timeout_ms / 1000:g} s"
                )
            yield Pause(pause_ms)
            paused_ms += pause_ms
            pause_ms = min(2 * pause_ms, 1_000)

    def operation_items(self, operation_id: str, cursor: str = "") -> Generator[Any, Any, Json]:
        """One page of what became of an operation's jobs."""
        path = f"{API}/operations/{quote(operation_id, safe='')}/items"
        return (yield from self._read(path, cursor=cursor, limit=str(PAGE_JOBS)))

    # One call

    def _asked(self, path: str, body: Json) -> Generator[Any, Any, Any]:
        """A read that says what it wants in its body."""
        call = Call("POST", path, body=_encode(body), headers=self.seen())
        return (yield from self.ask(call))

    def seen(self) -> tuple[tuple[str, str], ...]:
        """The header by which a read sees all that this client wrote."""
        return ((POSITION_HEADER, token(self._written.values())),) if self._written else ()

    def _read(self, path: str, **params: str) -> Generator[Any, Any, Any]:
        given = tuple((name, value) for name, value in params.items() if value)
        return (yield from self.ask(Call("GET", path, given, headers=self.seen())))

    def ask(self, call: Call) -> Generator[Any, Any, Any]:
        """The answer's JSON. Raises the error that the server answered with."""
        answer = yield from self._answered(call)
        if answer.status >= 400:
            raise error_of(answer)
        if call.method != "GET":
            self._remember(answer.headers.get(POSITION_HEADER, ""))
        try:
            return msgspec.json.decode(answer.body) if answer.body else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PenstockError(
                f"{self.server} answered what is not JSON: is it a Penstock server?"
            ) from error

    def _answered(self, call: Call) -> Generator[Any, Any, Answer]:
        """The answer to a call, repeated while the server is not there for it.

        Raises:
            ServerUnreachable: nothing answered within the client's patience.
        """
        paused_ms, backoff_ms = 0, FIRST_PAUSE_MS
        while True:
            answer = cast("Answer", (yield call))
            if not answer.unreached and answer.status != 503:
                return answer
            pause_ms = max(backoff_ms, _retry_after_ms(answer))
            if paused_ms + pause_ms > self.patience_ms:
                if answer.unreached:
                    raise ServerUnreachable(
                        f"{self.server} does not answer: {answer.unreached}", server=self.server
                    )
                return answer
            yield Pause(pause_ms)
            paused_ms += pause_ms
            backoff_ms = min(2 * backoff_ms, LONGEST_PAUSE_MS)

    def _remember(self, text: str) -> None:
        if not text:
            return
        try:
            for partition, position in parse_token(text).items():
                self._written[partition] = max(position, self._written.get(partition, position))
        except InvalidCursor:
            return


def _job_path(job_id: str) -> str:
    # A dot segment or an empty name would lead to another resource than a job.
    if job_id in ("", ".", ".."):
        raise JobNotFound(f"{job_id!r} is not a job id")
    return f"{API}/jobs/{quote(job_id, safe='~:')}"


def _retry_after_ms(answer: Answer) -> int:
    text = answer.headers.get("retry-after", "")
    return min(int(text), 3_600) * 1_000 if text.isascii() and text.isdigit() and len(text) < 10 else 0


def as_json(fields: Mapping[str, Any]) -> Json:
    """Plain JSON values of what was given; None counts as not given."""
    given = {name: value for name, value in fields.items() if value is not None}
    return cast("Json", msgspec.to_builtins(given, enc_hook=plain))
