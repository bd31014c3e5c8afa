"""``@task``: a function becomes the handler of a job type, and stays a function.

::

    @task(max_attempts=3)
    async def resize(image: Image, ctx: Context) -> dict[str, int]: ...


    await resize(Image(...), ctx)  # a plain call
    job = await resize.enqueue(Image(...), priority="high")  # a job on the server
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from penstock.client.requests import JobOptions, request_fields, request_from
from penstock.schemas.errors import InvalidField
from penstock.schemas.events import Backoff, Priority
from penstock.schemas.ids import NAME_PATTERN
from penstock.workers.arguments import Arguments
from penstock.workers.dependencies import Depends
from penstock.workers.errors import TaskInvalid

if TYPE_CHECKING:
    from penstock.client.http import Client
    from penstock.client.http_async import AsyncClient

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS = frozenset(JobOptions.__annotations__)
"""Names of the keyword arguments of :meth:`Task.enqueue` that are about the job and not its payload."""

_NAME = re.compile(NAME_PATTERN)


class Enqueuer(Protocol):
    """What sends a job: :class:`penstock.client.http_async.AsyncClient`, or a stand-in for tests."""

    def enqueue(self, job_type: str, payload: Any = None, /, **options: Any) -> Awaitable[dict[str, Any]]: ...


class Task(Generic[P, R]):
    """A handler and the job type that it handles. Made by :func:`task`."""

    def __init__(
        self, function: Callable[P, R], name: str, options: Mapping[str, Any], *, process: bool = False,
        concurrency: int | None = None,
    ) -> None:  # fmt: skip
        if not _NAME.match(name):
            raise TaskInvalid(f"{name!r} is no name for a job type")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TaskInvalid(f"{name}: a generator cannot be a task")
        self.function: Callable[..., Any] = function
        self.name = name
        self.options = {key: value for key, value in options.items() if value is not None}
        """What jobs enqueued by this task get where the call does not say otherwise."""
        try:
            request_from(request_fields(name, None, cast("JobOptions", self.options)), ours=True)
        except InvalidField as error:
            raise TaskInvalid(f"{name}: {error.message}") from error
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        if concurrency is not None and concurrency < 1:
            raise TaskInvalid(f"{name}: concurrency is at least 1")
        self.concurrency = concurrency
        """How many of its jobs a worker runs at once; None: as many as it runs of all."""
        self.process = process
        """Whether it runs in a process of its own, which can be killed."""
        if process and self.is_async:
            raise TaskInvalid(
                f"{name}: process=True is for def handlers; an async def handler runs on the event loop"
            )
        functools.update_wrapper(cast("Callable[..., Any]", self), function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast("R", self.function(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    @functools.cached_property
    def arguments(self) -> Arguments:
        """How it takes its payload.

        Raises:
            TaskInvalid: the signature cannot be filled from a payload.
        """
        return Arguments(self.function)

    @property
    def needs(self) -> Mapping[str, Depends]:
        """What it is provided with, by parameter. Raises TaskInvalid, as :attr:`arguments`."""
        return self.arguments.needs

    async def enqueue(
        self, *args: Any, client: AsyncClient | Enqueuer | None = None, options: JobOptions | None = None, **kwargs: Any
    ) -> dict[str, Any]:  # fmt: skip
        """Put a job of this type on the server; returns it once it is durable.

        Args and keyword arguments are the handler's own, without the context. Keyword arguments that the
        handler does not have are options of the job: ``priority``, ``delay_ms``, ``run_at``, ``id``, ``queue``,
        ``tags``, ``metadata``, ``timeout_ms``, ``max_attempts``, ``backoff``, ... ``options`` takes them where
        a parameter has the same name.

        Args:
            client: who sends it; without one, a client of ``PENSTOCK_SERVER`` (default http://127.0.0.1:8700).

        Raises:
            InvalidPayload: the arguments do not fit the handler; nothing was sent.
            ServerUnreachable: the server does not answer; other errors as it answers.
        """
        payload, job_options = self._request(args, kwargs, options)
        if client is not None:
            return await client.enqueue(self.name, payload, **job_options)
        async with default_client() as own:
            return await own.enqueue(self.name, payload, **cast("JobOptions", job_options))

    def enqueue_sync(
        self, *args: Any, client: Client | None = None, options: JobOptions | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As :meth:`enqueue`, and blocks."""
        payload, job_options = self._request(args, kwargs, options)
        given = cast("JobOptions", job_options)
        if client is not None:
            return client.enqueue(self.name, payload, **given)
        from penstock.client.http import Client

        with Client() as own:
            return own.enqueue(self.name, payload, **given)

    def payload_of(self, *args: Any, **kwargs: Any) -> Any:
        """The payload that stands for a call: plain JSON values.

        Raises:
            InvalidPayload: the arguments do not fit the handler.
        """
        return self.arguments.payload_of(args, kwargs)

    def _request(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions | None
    ) -> tuple[Any, dict[str, Any]]:
        own = self.arguments.signature.parameters
        about_job = {name: value for name, value in kwargs.items() if name in OPTIONS and name not in own}
        about_payload = {name: value for name, value in kwargs.items() if name not in about_job}
        given = {**self.options, **about_job, **(options or {})}
        return self.payload_of(*args, **about_payload), given


def default_client() -> AsyncClient:
    """Of the server that ``PENSTOCK_SERVER`` names. A worker whose handlers need none loads no HTTP client."""
    from penstock.client import http_async

    return http_async.AsyncClient()


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *, name: str = "", queue: str | None = None, pool: str | None = None, priority: Priority | None = None,
    max_attempts: int | None = None, backoff: Backoff | Mapping[str, Any] | None = None, timeout_ms: int | None = None,
    concurrency: int | None = None, process: bool = False,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...  # fmt: skip


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    queue: str | None = None,
    pool: str | None = None,
    priority: Priority | None = None,
    max_attempts: int | None = None,
    backoff: Backoff | Mapping[str, Any] | None = None,
    timeout_ms: int | None = None,
    concurrency: int | None = None,
    process: bool = False,
) -> Any:
    """Make a function the handler of the job type ``name`` (the function's own name if not given).

    ``concurrency`` is how many of its jobs a worker process runs at once, if that is fewer than it runs of all.
    With ``process``, a ``def`` handler runs in a child process of the worker: for work that keeps a processor busy, and
    for what may have to be killed to be stopped. Its module is imported there, its dependencies are opened there.

    The other arguments are defaults for jobs enqueued by :meth:`Task.enqueue`; jobs that come another way have
    their own.

    Raises:
        TaskInvalid: the function cannot be a task, or a default is not allowed.
    """
    options = {
        "queue": queue, "pool": pool, "priority": priority, "max_attempts": max_attempts, "backoff": backoff,
        "timeout_ms": timeout_ms,
    }  # fmt: skip

    def made(handler: Callable[..., Any]) -> Task[..., Any]:
        return Task(
            handler,
            name or getattr(handler, "__name__", ""),
            options,
            process=process,
            concurrency=concurrency,
        )

    return made if function is None else made(function)
