"""How many worker processes there should be, as tables."""

from __future__ import annotations

import pytest

from penstock.workers.scaling import CALM_MS, MANY, Bounds, Load, Scaling, bounds_of


def load(busy: int, *, waiting: int = 0, held: int = 0, finished: int = 0, stuck: int = 0) -> Load:
    """Of a process with ten slots."""
    return Load(concurrency=10, busy=busy, waiting=waiting, held=held, finished=finished, stuck=stuck)


def told(*loads: Load | None) -> list[tuple[int, Load | None]]:
    return list(enumerate(loads, 1))


@pytest.mark.parametrize(
    ("text", "bounds"), [("1", (1, 1)), ("4", (4, 4)), ("1..8", (1, 8)), ("3..3", (3, 3))]
)
def test_bounds(text: str, bounds: tuple[int, int]) -> None:
    assert bounds_of(text) == bounds


@pytest.mark.parametrize("text", ["", "0", "0..4", "4..1", "-1", "1..", "..4", "a", "1.5", "1...4", "99999"])
def test_what_are_no_bounds(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        bounds_of(text)


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ([], 1),
        ([None], 1),
        ([load(0)], 1),
        # Full, and nothing waits.
        ([load(10)], 1),
        # Something waits, and there is room: it is on its way.
        ([load(5, waiting=100)], 1),
        # Full, nothing ends: as many as would take what waits, and no more than twice as many.
        ([load(10, waiting=4)], 2),
        ([load(10, waiting=40)], 2),
        ([load(10, waiting=40), load(9, waiting=40)], 4),
        ([load(10, waiting=5), load(10, waiting=5)], 3),
        ([load(10, held=3)], 2),
        # Nobody knows how much waits.
        ([load(10, waiting=MANY)], 2),
        # One that has room takes what waits for the others.
        ([load(10, waiting=40), load(2, waiting=40)], 2),
        # One that has not told yet may be enough.
        ([load(10, waiting=40), None], 2),
        # Slots that are lost don't count.
        ([load(4, waiting=40, stuck=6)], 2),
        ([load(10, waiting=400)] * 6, 8),
        ([load(10, waiting=400)] * 8, 8),
        # Bounds were made narrower, or a child too many is there.
        ([load(10)] * 9, 8),
    ],
)
def test_growing(loads: list[Load | None], wanted: int) -> None:
    assert Scaling(Bounds(1, 8)).wanted(told(*loads), 0) == wanted


def test_it_grows_by_how_long_what_waits_would_wait() -> None:
    for waiting, wanted in ((40, 2), (100, 2), (120, 3), (180, 4), (10_000, 4)):
        scaling = Scaling(Bounds(1, 8))
        busy = [load(10, waiting=waiting)] * 2
        scaling.wanted(told(*busy), 0)
        # A hundred jobs in half a second: a hundred that wait are done in half a second.
        later = [load(10, waiting=waiting, finished=50)] * 2
        assert scaling.wanted(told(*later), 500) == wanted, waiting


def test_it_shrinks_one_by_one_after_calm() -> None:
    scaling = Scaling(Bounds(1, 8))
    calm = [load(2), load(1), load(0)]
    assert scaling.wanted(told(*calm), 0) == 3
    assert scaling.wanted(told(*calm), CALM_MS - 1) == 3
    assert scaling.wanted(told(*calm), CALM_MS) == 2
    assert scaling.wanted(told(*calm[:2]), CALM_MS + 1) == 2
    assert scaling.wanted(told(*calm[:2]), 2 * CALM_MS + 1) == 1
    for at_ms in (3, 5, 9):
        assert scaling.wanted(told(load(0)), at_ms * CALM_MS) == 1


@pytest.mark.parametrize(
    "busy",
    [load(8), load(2, waiting=6), load(2, held=6), load(2, waiting=MANY)],
    ids=["busy", "waiting", "held", "many"],
)
def test_any_moment_without_calm_begins_it_anew(busy: Load) -> None:
    scaling = Scaling(Bounds(1, 8))
    calm = told(load(1), load(0))
    assert scaling.wanted(calm, 0) == 2
    assert scaling.wanted(told(busy, load(0)), CALM_MS - 1) == 2
    assert scaling.wanted(calm, CALM_MS) == 2
    assert scaling.wanted(calm, 2 * CALM_MS - 1) == 2
    assert scaling.wanted(calm, 2 * CALM_MS) == 1


def test_one_that_was_started_anew_counts_from_its_own_beginning() -> None:
    scaling = Scaling(Bounds(1, 8))
    scaling.wanted(told(load(10, waiting=100, finished=5_000)), 0)
    scaling.wanted(told(None), 100)
    assert scaling.wanted(told(load(10, waiting=100, finished=0)), 200) == 2
    assert scaling.wanted(told(load(10, waiting=100, finished=500)), 700) == 1
