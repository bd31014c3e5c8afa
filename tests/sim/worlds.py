"""Which world a seed makes, and playing many of them on all cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from tests.sim.run import Run
from tests.sim.whole import WholeRun
from tests.sim.world import Violation

WHOLE_EVERY = 4
"""One seed of so many makes a world of whole processes, for it costs several times one of machines alone."""

CHUNK = 4
BATCH = 64


class Played(NamedTuple):
    """What became of a seed. ``found`` is empty where all was well."""

    seed: int
    stats: Counter[str]
    trace_digest: str
    found: str


def run_of(seed: int) -> Run | WholeRun:
    """The world of a seed."""
    return Run(seed) if seed % WHOLE_EVERY else WholeRun(seed)


def play(seed: int) -> Played:
    """Play one seed. Whatever goes wrong is a finding."""
    logging.disable(logging.CRITICAL)
    run = run_of(seed)
    try:
        run.play()
        found = ""
    except Violation as violation:
        found = str(violation)
    except Exception:  # noqa: BLE001 # whatever is raised inside is a finding, and its seed must be told
        found = f"seed {seed}, {run.weather}\n{traceback.format_exc()}"
    finally:
        logging.disable(logging.NOTSET)
    stats = run.world.stats
    stats["steps"] = run.world.steps
    stats["whole worlds"] = int(isinstance(run, WholeRun))
    return Played(seed, stats, run.world.trace_digest, found)


def play_all(seeds: Iterable[int], processes: int = 0) -> Iterator[Played]:
    """Play many, in any order, on so many cores (0: all there are)."""
    count = processes or len(os.sched_getaffinity(0))
    if count == 1:
        yield from map(play, seeds)
        return
    seeds = iter(seeds)
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        # The pool reads ahead as far as it can: who stops in time must be asked now and then.
        while batch := list(islice(seeds, count * BATCH)):
            yield from pool.imap_unordered(play, batch, CHUNK)
