"""Loops that end although nobody asked them to are told of; those that were asked are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from penstock.log.kafka_options import KafkaOptions, within
from penstock.log.kafka_producer import SupervisedProducer, _Generation
from penstock.log.kafka_tail import KafkaTail
from penstock.log.supervision import EndedByItself, supervise, tell, why_ended
from penstock.schemas.errors import AppendUnknown, LogUnavailable


async def leaked() -> None:
    """What a client does that cancels its own futures while it stops."""
    own: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(own.cancel)
    await own


async def broken() -> None:
    raise ValueError("broken")


async def resting() -> None:
    await asyncio.Event().wait()


async def returning() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (leaked, EndedByItself, "cancelled from within"),
        (broken, ValueError, "broken"),
        (returning, EndedByItself, "returned"),
    ],
)
async def test_an_end_that_nobody_asked_for_is_a_failure(
    work: Callable[[], Coroutine[Any, Any, None]], kind: type[Exception], message: str
) -> None:
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    supervise(work(), "a loop", lambda error: tell(failure, error))
    with pytest.raises(kind, match=message):
        await asyncio.wait_for(failure, 10)


async def test_a_loop_that_was_cancelled_is_none() -> None:
    told: list[BaseException] = []
    task = supervise(resting(), "a loop", told.append)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (why_ended(task), told) == (None, [])


async def test_time_that_ran_out_inside_is_no_request_to_end() -> None:
    async def impatient() -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            await leaked()

    task = asyncio.create_task(impatient())
    await asyncio.gather(task, return_exceptions=True)
    assert isinstance(why_ended(task), EndedByItself)


async def test_the_first_failure_counts() -> None:
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tell(failure, ValueError("first"))
    tell(failure, ValueError("second"))
    with pytest.raises(ValueError, match="first"):
        await failure


class TestWithin:
    async def test_a_cancellation_that_the_client_lets_out_is_the_logs_failure(self) -> None:
        with pytest.raises(LogUnavailable, match="gave up: stopping"):
            await within(10_000, "stopping", leaked())

    async def test_a_cancellation_from_outside_goes_on(self) -> None:
        task = asyncio.create_task(within(10_000, "waiting", asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_what_takes_too_long_is_the_logs_failure(self) -> None:
        with pytest.raises(LogUnavailable, match="within 1 ms: waiting"):
            await within(1, "waiting", asyncio.Event().wait())


class GivesUp:
    """An aiokafka client that cancels what it does."""

    async def getmany(self, **_: object) -> dict[str, object]:
        await leaked()
        return {}

    async def send_and_wait(self, *_: object, **__: object) -> None:
        await leaked()

    def assign(self, *_: object) -> None: ...
    def seek(self, *_: object) -> None: ...
    async def stop(self) -> None: ...


class TestKafkaClients:
    """Their own cancellations are errors of the log, after which callers try again."""

    async def test_a_tail(self) -> None:
        tail = KafkaTail(KafkaOptions(bootstrap="nowhere:1"), None, {("jobs", 0): 0})  # type: ignore[arg-type]  # no log is asked
        tail._consumer = GivesUp()
        with pytest.raises(LogUnavailable, match="gave up"):
            await tail.poll(1_000)

    async def test_a_producer(self) -> None:
        producer = SupervisedProducer(KafkaOptions(bootstrap="nowhere:1"))
        producer._current = _Generation(GivesUp())
        with pytest.raises(AppendUnknown, match="gave up"):
            await producer.append("jobs", 0, b"{}", None, ())
        assert producer._current is None, "it is replaced"
        await producer.close()


async def test_a_cancel_at_the_very_moment_of_the_answer_is_not_lost() -> None:
    """A loop that is told to end just then would go on, and whoever waits for its end would wait for ever."""
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(within(10_000, "asking", answer))
    await asyncio.sleep(0)
    answer.set_result(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
