from __future__ import annotations

from penstock.projections.directory import SILENT_AFTER_S, Directory
from penstock.schemas.messages import Serving


def serving(address: str, leaving: bool = False, **partitions: int) -> Serving:
    offsets = {int(name[1:]): offset for name, offset in partitions.items()}
    return Serving(projection=address, incarnation="1", address=address, partitions=offsets, leaving=leaving)


def test_the_furthest_is_chosen_and_kept() -> None:
    directory = Directory()
    directory.heard(serving("a", p0=5), 0.0)
    directory.heard(serving("b", p0=9, p1=1), 0.0)
    assert directory.address_of(0, 0.0) == "b"
    directory.heard(serving("a", p0=50), 1.0)
    assert directory.address_of(0, 1.0) == "b"
    assert directory.cover([0, 1, 2], 1.0) == ({"b": [0, 1]}, [2])


def test_the_silent_the_leaving_and_the_lost_are_not_asked() -> None:
    directory = Directory()
    directory.heard(serving("a", p0=5), 0.0)
    assert directory.address_of(0, SILENT_AFTER_S + 0.1) is None
    directory.heard(serving("a", p0=5), 10.0)
    directory.gone("a")
    assert directory.address_of(0, 10.0) is None
    directory.heard(serving("a", p0=6), 10.5)
    assert directory.address_of(0, 10.5) == "a"
    directory.heard(serving("a", leaving=True, p0=6), 10.6)
    assert directory.address_of(0, 10.6) is None


def test_a_partition_that_moves_is_asked_for_where_it_is() -> None:
    directory = Directory()
    directory.heard(serving("a", p0=5, p1=5), 0.0)
    directory.heard(serving("b", p2=5), 0.0)
    assert directory.cover([0, 1, 2], 0.0) == ({"a": [0, 1], "b": [2]}, [])
    directory.heard(serving("a", p0=6), 1.0)
    directory.heard(serving("b", p1=4, p2=6), 1.0)
    assert directory.cover([0, 1, 2], 1.0) == ({"a": [0], "b": [1, 2]}, [])


def test_silent_processes_do_not_pile_up() -> None:
    directory = Directory()
    for number in range(100):
        directory.heard(serving(f"host:{number}", p0=1), now_s=10.0 * number)
    assert len(directory._processes) == 1
