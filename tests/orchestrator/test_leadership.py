"""Who nominates itself, by what it hears."""

from __future__ import annotations

from itertools import permutations

from penstock.orchestrator.leadership import ANNOUNCE_AGAIN_MS, SILENT_MS, Peers
from penstock.schemas.messages import Beat

NAMES = ("ada", "bob", "cyd")
PARTITIONS = range(40)


def beat(name: str, *, caught_up: bool = True, leaving: bool = False) -> Beat:
    return Beat(
        orchestrator=name, incarnation=name, caught_up=tuple(PARTITIONS) if caught_up else (), leaving=leaving
    )


def nominees(hearing: dict[str, list[Beat]], now_ms: int = 0) -> dict[int, list[str]]:
    """Who nominates itself for each partition, when each has heard these beats at 0 ms."""
    peers = {name: Peers(name) for name in hearing}
    for name, beats in hearing.items():
        for one in beats:
            peers[name].hear(one, 0)
    live = {name: peers[name].live(now_ms) for name in peers}
    return {
        number: [name for name in peers if peers[name].nominated(number, live[name])] for number in PARTITIONS
    }


def test_one_alone_takes_all() -> None:
    assert set(map(tuple, nominees({"ada": []}).values())) == {("ada",)}


def test_two_and_three_agree_and_share() -> None:
    for names in (NAMES[:2], NAMES):
        found = nominees({name: [beat(other) for other in names] for name in names})
        assert all(len(who) == 1 for who in found.values())
        shares = [sum(who == [name] for who in found.values()) for name in names]
        assert min(shares) > 40 // len(names) // 3


def test_a_newcomer_takes_only_what_becomes_its_own() -> None:
    two = nominees({name: [beat(other) for other in NAMES[:2]] for name in NAMES[:2]})
    three = nominees({name: [beat(other) for other in NAMES] for name in NAMES})
    assert all(three[number] in (two[number], ["cyd"]) for number in PARTITIONS)


def test_who_has_not_caught_up_is_no_rival() -> None:
    found = nominees({"ada": [beat("bob", caught_up=False)]})
    assert all(who == ["ada"] for who in found.values())


def test_the_silent_and_the_leaving_count_no_more() -> None:
    for first, second in permutations(NAMES[:2]):
        hearing = {first: [beat(second)]}
        assert any(who == [] for who in nominees(hearing, SILENT_MS).values())
        assert all(who == [first] for who in nominees(hearing, SILENT_MS + 1).values())
        left = nominees({first: [beat(second), beat(second, leaving=True)]})
        assert all(who == [first] for who in left.values())


def test_silence_counts_only_while_one_listens() -> None:
    peers = Peers("ada")
    peers.hear(beat("bob"), 0)
    peers.unheard(60_000)
    assert [one.incarnation for one in peers.live(60_000 + SILENT_MS)] == ["bob"]
    assert peers.live(60_001 + SILENT_MS) == []


def test_claims_are_repeated_at_times_of_ones_own() -> None:
    pauses = {Peers(name).announce_again_ms(number) for name in NAMES for number in PARTITIONS}
    assert len(pauses) > 60
    assert all(ANNOUNCE_AGAIN_MS <= pause < 2 * ANNOUNCE_AGAIN_MS for pause in pauses)
