"""`@task`: still a function, and a typed way to put a job on a server."""

from typing import Any

import httpx
import msgspec
import pytest
from pydantic import BaseModel

from penstock.client.http import Client
from penstock.client.http_async import AsyncClient
from penstock.workers.app import App, collect
from penstock.workers.context import Context
from penstock.workers.errors import AppInvalid, InvalidPayload, TaskInvalid
from penstock.workers.task import Task, task


class Image(BaseModel):
    url: str
    width: int = 100


@task(name="image.resize", queue="images", priority="low", max_attempts=7)
async def resize(image: Image, ctx: Context | None = None) -> str:
    """Makes it smaller."""
    return f"{image.url}@{image.width}"


@task
def plain(id: str, priority: int = 0) -> str:
    return f"{id}{priority}"


class Requests:
    """A server that accepts every job and keeps what was sent."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(msgspec.json.decode(request.content))
        return httpx.Response(201, json={"id": self.bodies[-1]["id"], "state": "ready"})

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)


async def test_a_task_is_still_its_function() -> None:
    assert await resize(Image(url="u")) == "u@100"
    assert plain("a", 2) == "a2"
    assert resize.__doc__ == "Makes it smaller."
    assert (resize.name, resize.is_async, plain.name, plain.is_async) == (
        "image.resize",
        True,
        "plain",
        False,
    )
    assert repr(plain) == "<task plain>"


async def test_enqueue_sends_the_payload_the_task_s_defaults_and_the_call_s_options() -> None:
    server = Requests()
    async with AsyncClient("http://penstock", transport=server.transport) as client:
        job = await resize.enqueue(Image(url="u"), priority="high", delay_ms=5, id="mine", client=client)
    assert job["id"] == "mine"
    assert server.bodies == [
        {
            "type": "image.resize",
            "payload": {"url": "u", "width": 100},
            "queue": "images",
            "priority": "high",
            "max_attempts": 7,
            "delay_ms": 5,
            "id": "mine",
        }
    ]


def test_enqueue_sync_does_the_same() -> None:
    server = Requests()
    with Client("http://penstock", transport=server.transport) as client:
        resize.enqueue_sync(image={"url": "u", "width": 2}, client=client)
    assert server.bodies[0]["payload"] == {"url": "u", "width": 2}
    assert server.bodies[0]["priority"] == "low"


def test_a_parameter_with_an_option_s_name_is_the_parameter_s() -> None:
    server = Requests()
    with Client("http://penstock", transport=server.transport) as client:
        plain.enqueue_sync(id="a", priority=3, client=client, options={"priority": "critical", "id": "job"})
    assert server.bodies[0]["payload"] == {"id": "a", "priority": 3}
    assert (server.bodies[0]["priority"], server.bodies[0]["id"]) == ("critical", "job")


async def test_a_call_that_does_not_fit_sends_nothing() -> None:
    server = Requests()
    async with AsyncClient("http://penstock", transport=server.transport) as client:
        with pytest.raises(InvalidPayload, match="width"):
            await resize.enqueue({"url": "u", "width": "wide"}, client=client)
        with pytest.raises(InvalidPayload, match="urgency"):
            await resize.enqueue(Image(url="u"), urgency=5, client=client)
    assert server.bodies == []


async def test_without_a_client_the_server_of_the_environment_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Recorded(AsyncClient):
        async def enqueue(self, job_type: str, payload: Any = None, /, **options: Any) -> dict[str, Any]:
            asked.append(f"{job_type} {payload} {sorted(options)}")
            return {"id": "x"}

    monkeypatch.setattr("penstock.workers.task.default_client", lambda: Recorded("http://elsewhere"))
    assert await plain.enqueue("a") == {"id": "x"}
    assert asked == ["plain {'id': 'a'} []"]


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "name"), [(generator, "g"), (plain.function, "no spaces"), (plain.function, "")]
)
def test_what_cannot_be_a_task(function: Any, name: str) -> None:
    with pytest.raises(TaskInvalid):
        Task(function, name, {})


def test_apps_collect_tasks_and_refuse_two_of_a_name() -> None:
    app = App(plain)

    @app.task
    async def extra() -> None: ...

    @app.task(name="named", timeout_ms=5)
    async def other() -> None: ...

    assert set(app.tasks) == {"plain", "extra", "named"}
    assert other.options == {"timeout_ms": 5}
    app.include(App(plain, resize), extra)
    assert len(app) == 4
    assert "image.resize" in app
    with pytest.raises(AppInvalid, match="plain"):
        app.include(Task(plain.function, "plain", {}))


def test_collecting_checks_every_signature() -> None:
    def broken(*args: int) -> None: ...

    with pytest.raises(TaskInvalid):
        collect([task(broken)])
    with pytest.raises(AppInvalid, match="no tasks"):
        collect([])
    assert set(collect(App(plain)).tasks) == {"plain"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"priority": "urgent"}, "allowed are critical, high, normal, low"),
        ({"queue": "a b"}, "no space"),
        ({"backoff": {"kind": "sometimes"}}, "allowed are none, fixed"),
    ],
)
def test_defaults_that_no_job_may_have_are_refused_where_they_stand(options: Any, said: str) -> None:
    with pytest.raises(TaskInvalid, match=said):
        task(name="noop", **options)(lambda: None)
