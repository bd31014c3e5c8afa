"""A producer that is watched: nothing waits for ever, and a client that went wrong is replaced.

aiokafka retries an idempotent batch for as long as it lives and may hang in ``send`` and ``stop`` when brokers go away
(its issues 1101 and 1017). Here every append has a deadline; the producer in which one passed, or whose sequence
numbers are spoiled, is retired: it takes no more appends, finishes or fails those under way, and is then torn down.
Retiring it also keeps a long outage from piling up copies of what is retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    IllegalStateError,
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
)
from aiokafka.structs import RecordMetadata

from penstock.log.kafka_options import KafkaOptions, within
from penstock.log.port import Appended, Headers
from penstock.log.supervision import asked_to_end
from penstock.schemas.errors import AppendRefused, AppendUnknown, LogUnavailable, RecordTooLarge

_logger = logging.getLogger(__name__)

BATCH_BYTES = 1_000_000
"""Records of one partition that share a request; topics must take this much at once."""
MAX_RECORD_BYTES = 16 * 1024 * 1024

_SPOILED = (OutOfOrderSequenceNumber, ProducerFenced, InvalidProducerEpoch, UnknownProducerId, ProducerClosed)
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_STOP_MS = 2_000
_TEAR_DOWN_S = 1.0
_BROKER_STAMPED = 1


class _Generation:
    """One aiokafka producer and how many appends are under way in it."""

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.under_way = 0
        self.idle = asyncio.Event()


class SupervisedProducer:
    """Appends single records. Start it before use; close it at the end."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._current: _Generation | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect. LogUnavailable when no broker answers in time."""
        await self._generation()

    async def close(self) -> None:
        """Finish what is under way, within limits, and disconnect."""
        self._closed = True
        if self._current is not None:
            self._retire(self._current)
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def append(
        self, topic: str, partition: int, value: bytes, key: bytes | None, headers: Headers
    ) -> Appended:
        """Append and wait for all in-sync replicas. Raises what :class:`penstock.log.port.Log` says."""
        if self._closed:
            raise AppendRefused("The log is closed.")
        try:
            generation = await self._generation()
        except LogUnavailable as error:
            raise AppendRefused(f"Not sent: {error.message}", transient=True) from error
        generation.under_way += 1
        try:
            sending = generation.producer.send_and_wait(
                topic, value, key=key, partition=partition, headers=list(headers)
            )
            async with asyncio.timeout(self._options.append_timeout_ms / 1000):
                metadata: RecordMetadata = await sending
        except TimeoutError as error:
            self._retire(generation)
            limit_ms = self._options.append_timeout_ms
            raise AppendUnknown(f"{topic}-{partition} did not acknowledge within {limit_ms} ms.") from error
        except _TOO_LARGE as error:
            raise RecordTooLarge(
                f"A record of {len(value)} bytes is too large for topic {topic!r}."
            ) from error
        except (TopicAuthorizationFailedError, IllegalStateError, AssertionError) as error:
            raise AppendRefused(f"Topic {topic!r}, partition {partition}: {error!r}") from error
        except KafkaError as error:
            if isinstance(error, _SPOILED) or not error.retriable:
                self._retire(generation)
            raise AppendUnknown(f"{topic}-{partition}: {error!r}") from error
        except asyncio.CancelledError as error:
            if asked_to_end():
                raise
            self._retire(generation)
            raise AppendUnknown(f"{topic}-{partition}: Kafka's client gave up.") from error
        finally:
            generation.under_way -= 1
            if not generation.under_way:
                generation.idle.set()
        return _appended(metadata)

    async def _generation(self) -> _Generation:
        if self._current is not None:
            return self._current
        async with self._starting:
            if self._current is not None:
                return self._current
            if self._closed:
                raise LogUnavailable("The log is closed.")
            producer: Any = AIOKafkaProducer(
                acks="all",
                enable_idempotence=True,
                max_batch_size=BATCH_BYTES,
                max_request_size=MAX_RECORD_BYTES,
                linger_ms=0,
                request_timeout_ms=self._options.append_timeout_ms,
                **self._options.connection(),
            )
            try:
                await within(self._options.request_timeout_ms, "starting a producer", producer.start())
            except BaseException:
                await _tear_down(producer)
                raise
            self._current = _Generation(producer)
            return self._current

    def _retire(self, generation: _Generation) -> None:
        """Take no more appends into it; stop it once those under way have ended, which their deadlines see to."""
        if self._current is not generation:
            return
        self._current = None
        task = asyncio.create_task(self._end(generation), name="kafka-producer-retiring")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, generation: _Generation) -> None:
        while generation.under_way:
            generation.idle.clear()
            await generation.idle.wait()
        stopping = asyncio.create_task(generation.producer.stop())
        done, _ = await asyncio.wait((stopping,), timeout=_STOP_MS / 1000 if self._closed else 0.1)
        if done and not stopping.cancelled() and stopping.exception() is None:
            return
        _logger.warning("A Kafka producer did not stop and is torn down.")
        stopping.cancel()
        await asyncio.wait((stopping,))
        await _tear_down(generation.producer)


def _appended(metadata: RecordMetadata) -> Appended:
    # For a batch it knows to have already, a broker may answer without offset and time; aiokafka then counts from -1.
    if metadata.timestamp_type != _BROKER_STAMPED:
        return Appended(-1, metadata.timestamp or 0)
    return Appended(metadata.offset, metadata.timestamp or 0)


async def _tear_down(producer: Any) -> None:
    """End a producer that hangs: aiokafka has no stop that gives up its batches, so its own parts are ended."""
    sender: Any = getattr(producer, "_sender", None)
    task: asyncio.Task[None] | None = getattr(sender, "sender_task", None)
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_TEAR_DOWN_S):
            await producer.client.close()
    if task is not None:
        # The first cancel makes the sender wait for its requests, the next ones end those.
        for _ in range(20):
            if task.done():
                break
            task.cancel()
            await asyncio.wait((task,), timeout=0.1)
    producer._closed = True
