"""The program's own measures, scaled down to a world that lasts seconds and holds a handful of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from penstock.api import operating
from penstock.core import job
from penstock.core.job import TERMINAL
from penstock.orchestrator import backlog, retention, timers
from penstock.orchestrator.retention import Retention
from tests.sim.weather import VERB_AGE_MS, Weather


@contextmanager
def scaled(weather: Weather) -> Iterator[None]:
    """What is run inside keeps as much in memory as the weather says, and forgets within seconds if it forgets."""
    window = weather.window
    with ExitStack() as patches:
        enter = patches.enter_context
        enter(mock.patch.multiple(backlog, WINDOW=window, REFILL_BELOW=max(1, window // 8)))
        enter(mock.patch.object(timers, "HORIZON_MS", weather.horizon_ms))
        enter(mock.patch.object(operating, "PAGE_JOBS", 2))
        if weather.forget_ms:
            enter(mock.patch.object(job, "MAX_VERB_AGE_MS", VERB_AGE_MS))
            enter(mock.patch.multiple(retention, MIN_AGE_MS=2 * VERB_AGE_MS, SHORTEST_PAUSE_MS=700))
        yield


def retention_of(weather: Weather) -> Retention:
    """Whom to forget and when. To be called inside of :func:`scaled`."""
    if not weather.forget_ms:
        return Retention()
    return Retention(dict.fromkeys(TERMINAL, weather.forget_ms))
