"""The life of a job, told as stories: see tests/core/stories.py for how to read a table."""

from __future__ import annotations

import re

import pytest

from penstock.core.job import MAX_VERDICTS, TRANSITIONS
from tests.core.group_stories import GROUP_STORIES, OF_RULES_4
from tests.core.serial_stories import OF_RULES_3, SERIAL_STORIES
from tests.core.stories import JOB, Story, play
from tests.core.unique_stories import OF_RULES_2, UNIQUE_STORIES
from tests.core.verb_stories import ACTIVE, CANCELLING, DEAD, OF_RULES_1, READY, VERB_STORIES

STORIES = {
    "a job goes well": """
        5   | Enqueued E               | applied | ready     | attempt=0 seen=65536 created_at_ms=5 enqueued_id=E
        10  | Leased L1                | applied | active    | attempt=1 worker=w started_at_ms=10 leased_at=98304
        11  | Progressed percent=50    | applied | active    | percent=50.0 progress_seq=1 seen=98304 last_event=L1
        20  | Succeeded S run_ms=9     | applied | succeeded | outcome_id=S finished_at_ms=20 last_run_ms=9
        """,
    "without an id of its own an Enqueued is named after its job": """
        0   | Enqueued id=             | applied | ready     | enqueued_id=J
        """,
    "a delayed job waits for its time": """
        100 | Enqueued E delay_ms=50   | applied   | scheduled | due_at_ms=150 scheduled_at_ms=150
        120 | Leased L1                | illegal   | scheduled |
        150 | Due D                    | applied   | ready     | due_at_ms=0
        151 | Due D                    | duplicate | ready     |
        151 | Due D2                   | illegal   | ready     |
        """,
    "the later of run_at and delay_ms holds": """
        100 | Enqueued E delay_ms=50 run_at=900 | applied | scheduled | due_at_ms=900
        """,
    "run_at in the past is now": """
        100 | Enqueued E run_at=100    | applied | ready | due_at_ms=0 scheduled_at_ms=100
        """,
    "an attempt fails and is retried with backoff": """
        0   | Enqueued E max_attempts=2 | applied | ready    | attempts_allowed=2
        10  | Leased L1                 | applied | active   | attempt=1
        20  | Failed F1                 | applied | retrying | due_at_ms=120 error_code=boom attempt=1
        120 | Due D1                    | applied | ready    | due_at_ms=0
        130 | Leased L2                 | applied | active   | attempt=2
        140 | Failed F2                 | applied | dead     | attempt=2 finished_at_ms=140
        150 | DeadLettered X            | applied | dead     | dead_lettered=True
        """,
    "an error that is not retryable makes the job dead at once": ACTIVE
    + "\n9 | Failed F retryable=no | applied | dead | attempt=1 attempts_allowed=5",
    "retry_after_ms overrides the backoff": ACTIVE
    + "\n9 | Failed F retry_after_ms=7 | applied | retrying | due_at_ms=16",
    "retry_after_ms of nothing is at once, behind the others": ACTIVE
    + "\n9 | Failed F retry_after_ms=0 | applied | ready | due_at_ms=0 order=131072",
    "without backoff a retry is at once": """
        0   | Enqueued E backoff=none  | applied | ready  |
        1   | Leased L1                | applied | active |
        2   | Failed F1                | applied | ready  | attempt=1
        """,
    "a job given back keeps its place and its attempt": ACTIVE
    + """
        3   | Returned R reason=surplus | applied   | ready  | attempt=0 order=65536 outcome_id=R
        4   | Returned R reason=surplus | duplicate | ready  |
        5   | Leased L2                 | applied   | active | attempt=1
        """,
    "a silent worker's job is ready at once; it cost an attempt": ACTIVE
    + "\n9 | LeaseExpired X | applied | ready | attempt=1 error_code=lease_expired",
    "a restarted worker's job that never started costs no attempt": ACTIVE
    + "\n9 | LeaseExpired X reason=superseded refund=true | applied | ready | attempt=0",
    "a restarted worker's job that ran costs one": ACTIVE
    + "\n9 | LeaseExpired X reason=superseded | applied | ready | attempt=1 error_code=worker_restarted",
    "a job that takes its workers down with it is refunded three times in a row, then it costs": """
        0   | Enqueued E               | applied | ready  |
        1   | Leased L1                | applied | active |
        2   | LeaseExpired refund=true | applied | ready  | attempt=0
        3   | Leased L2                | applied | active |
        4   | LeaseExpired refund=true | applied | ready  | attempt=0
        5   | Leased L3                | applied | active |
        6   | LeaseExpired refund=true | applied | ready  | attempt=0
        7   | Leased L4                | applied | active |
        8   | LeaseExpired refund=true | applied | ready  | attempt=1
        """,
    "a timeout is a failure like others: it backs off": ACTIVE
    + "\n9 | LeaseExpired X reason=timeout | applied | retrying | due_at_ms=109 error_code=timeout",
    "the last attempt's lease expires: dead": """
        0   | Enqueued E max_attempts=1 | applied | ready  |
        1   | Leased L1                 | applied | active |
        2   | LeaseExpired X            | applied | dead   | error_code=lease_expired
        """,
    "the last attempt times out: dead": """
        0   | Enqueued E max_attempts=1       | applied | ready  |
        1   | Leased L1                       | applied | active |
        2   | LeaseExpired X reason=timeout   | applied | dead   | error_code=timeout
        """,
    "a zombie with an old lease changes nothing": ACTIVE
    + """
        2   | LeaseExpired X           | applied | ready  | attempt=1
        3   | Succeeded S1 lease=L1    | stale   | ready  |
        4   | Leased L2                | applied | active | attempt=2
        5   | Succeeded S1 lease=L1    | stale   | active |
        5   | Failed F1 lease=L1       | stale   | active |
        5   | Returned R1 lease=L1     | stale   | active |
        5   | Progressed P1 lease=L1 seq=9 | stale | active |
        5   | LeaseExpired X1 lease=L1 | stale   | active |
        5   | Cancelled X2 lease=L1    | stale   | active |
        6   | Succeeded S2             | applied | succeeded |
        7   | Failed F2                | stale   | succeeded |
        """,
    "the outcome of the last lease is known until the next one": ACTIVE
    + """
        2   | Failed F1 retry_after_ms=0 | applied   | ready  |
        3   | Failed F1 lease=L1         | duplicate | ready  |
        4   | Leased L2                  | applied   | active |
        5   | Failed F1 lease=L1         | duplicate | active |
        6   | Leased L2                  | duplicate | active |
        """,
    "a leader that decides on an older state is refused": """
        0   | Enqueued E delay_ms=50   | applied | scheduled |
        1   | CancelRequested C        | applied | cancelled |
        2   | RetryRequested R         | applied | ready     |
        3   | Leased L1 seen=#1        | stale   | ready     |
        3   | Due D seen=#1            | stale   | ready     |
        3   | Expired X seen=#2        | stale   | ready     |
        3   | DeadLettered X seen=#2   | stale   | ready     |
        3   | Forgotten X seen=#2      | stale   | ready     |
        4   | Leased L2                | applied | active    |
        """,
    "one that does not lead is refused": READY
    + """
        1   | Leased L1 epoch=-1       | stale   | ready  |
        1   | Leased L1 epoch=99       | stale   | ready  |
        1   | Leased L1                | applied | active |
        2   | LeaseExpired X epoch=0   | stale   | active |
        2   | Cancelled X epoch=0      | stale   | active |
        """,
    "progress moves nothing that others compare with": ACTIVE
    + """
        2   | Progressed seq=3 percent=30 message=cutting | applied   | active | seen=98304 percent=30.0 message=cutting
        3   | Progressed seq=3 percent=31                 | duplicate | active | percent=30.0
        3   | Progressed seq=2 percent=20                 | stale     | active | percent=30.0
        4   | Progressed seq=4                            | applied   | active | percent=30.0 message=cutting
        5   | LeaseExpired X                              | applied   | ready  | percent=30.0
        6   | Leased L2                                   | applied   | active | progress_seq=0
        7   | Progressed seq=1                            | applied   | active | progress_seq=1
        """,
    "a checkpoint stays until the next one, through every attempt": ACTIVE
    + """
        2   | Progressed checkpoint=17 | applied | active | checkpoint_hash=@17
        3   | Progressed percent=9     | applied | active | checkpoint_hash=@17
        4   | LeaseExpired X           | applied | ready  | checkpoint_hash=@17
        5   | Leased L2                | applied | active | checkpoint_hash=@17
        6   | Progressed checkpoint=18 | applied | active | checkpoint_hash=@18
        7   | Progressed checkpoint=null | applied | active | checkpoint_hash=@null
        """,
    "the same job asked for twice": """
        0   | Enqueued E               | applied   | ready |
        1   | Enqueued E               | duplicate | ready |
        2   | Enqueued E2              | duplicate | ready |
        3   | Enqueued E3 job_type=u   | conflict  | ready |
        4   | Enqueued E3 request_hash=h | conflict | ready |
        """,
    "the writer's own hash of the request counts, not what became of it": """
        0   | Enqueued E request_hash=h max_attempts=3 | applied   | ready |
        1   | Enqueued E request_hash=h max_attempts=9 | duplicate | ready | max_attempts=3
        2   | Enqueued E request_hash=g max_attempts=3 | conflict  | ready |
        """,
    "a waiting job is cancelled at once": """
        0   | Enqueued E               | applied   | ready     |
        1   | CancelRequested C        | applied   | cancelled | finished_at_ms=1 cancel=
        2   | CancelRequested C        | duplicate | cancelled |
        3   | CancelRequested C2       | illegal   | cancelled |
        """,
    "a scheduled job is cancelled at once": """
        0   | Enqueued E delay_ms=9    | applied   | scheduled |
        1   | CancelRequested C        | applied   | cancelled | due_at_ms=0
        """,
    "a retrying job is cancelled at once": ACTIVE
    + """
        2   | Failed F                 | applied | retrying  |
        3   | CancelRequested C        | applied | cancelled | due_at_ms=0
        """,
    "cancel pending, and it succeeds: success wins": CANCELLING
    + """
        3   | CancelRequested C2       | illegal | active    | cancel=C
        4   | Succeeded S              | applied | succeeded | cancel=
        5   | Cancelled X              | stale   | succeeded |
        """,
    "cancel pending, and it fails: cancelled": CANCELLING + "\n3 | Failed F | applied | cancelled | cancel=",
    "cancel pending, and it comes back: cancelled": CANCELLING
    + "\n3 | Returned R | applied | cancelled | attempt=0",
    "cancel pending, and its lease expires: cancelled": CANCELLING
    + "\n3 | LeaseExpired X | applied | cancelled |",
    "cancel pending, and it times out: cancelled": CANCELLING
    + "\n3 | LeaseExpired X reason=timeout | applied | cancelled |",
    "cancel pending, and it is refunded: cancelled": CANCELLING
    + "\n3 | LeaseExpired X refund=true | applied | cancelled | attempt=0",
    "cancel pending, and its holder doesn't acknowledge: the leader ends it": CANCELLING
    + """
        3   | Cancelled X              | applied   | cancelled | outcome_id=X
        4   | Cancelled X              | duplicate | cancelled |
        5   | Succeeded S              | stale     | cancelled |
        """,
    "a leader doesn't cancel by itself": ACTIVE + "\n3 | Cancelled X | illegal | active |",
    "a dead job is retried with as many attempts as it began with": DEAD
    + """
        3   | DeadLettered X           | applied | dead  | dead_lettered=True
        4   | RetryRequested R         | applied | ready | attempt=1 attempts_allowed=6 dead_lettered=False error_code=
        5   | RetryRequested R         | duplicate | ready |
        6   | RetryRequested R2        | illegal | ready |
        """,
    "a dead job is retried with one more attempt": DEAD
    + """
        3   | RetryRequested R attempts=1 | applied | ready  | attempts_allowed=2
        4   | Leased L2                   | applied | active | attempt=2
        5   | Failed F2                   | applied | dead   | attempt=2
        """,
    "cancelled and expired jobs can be retried": """
        0   | Enqueued E expires_at=5  | applied | ready     |
        6   | Expired X                | applied | expired   | error_code=expired finished_at_ms=6
        7   | RetryRequested R         | applied | ready     | expires_at_ms=0
        8   | CancelRequested C        | applied | cancelled |
        9   | RetryRequested R2        | applied | ready     |
        """,
    "scheduled and retrying jobs expire; a running one doesn't": """
        0   | Enqueued E delay_ms=90 expires_at=5 | applied | scheduled |
        5   | Expired X                | applied | expired  |
        6   | RetryRequested R         | applied | ready    |
        7   | Leased L1                | applied | active   |
        8   | Expired X1               | illegal | active   |
        9   | Failed F                 | applied | retrying |
        10  | Expired X2               | applied | expired  |
        """,
    "a succeeded job is not retried": ACTIVE
    + """
        2   | Succeeded S              | applied   | succeeded |
        3   | RetryRequested R         | illegal   | succeeded |
        4   | RetryRequested R         | duplicate | succeeded |
        """,
    "a verb about an earlier life of the id is stale": READY
    + "\n1 | CancelRequested C of=E0 | stale | ready |",
    "a verb that comes late has no effect": """
        100 | Enqueued E                      | applied  | ready |
        200 | CancelRequested C not_after=199 | too_late | ready |
        200 | CancelRequested C not_after=200 | applied  | cancelled |
        """,
    "a verb may not hold for too long": READY
    + """
        10  | CancelRequested C not_after=+600001 | illegal | ready |
        11  | CancelRequested D not_after=+600000 | applied | cancelled |
        """,
    "what was refused for holding too long stays refused": READY
    + """
        10     | CancelRequested C not_after=700000 | illegal   | ready |
        200000 | CancelRequested C not_after=700000 | duplicate | ready |
        """,
    "a refused verb doesn't happen after all when the state changes": ACTIVE
    + """
        2   | RetryRequested R         | illegal   | active |
        3   | Failed F retryable=no    | applied   | dead   |
        4   | RetryRequested R         | duplicate | dead   |
        5   | RetryRequested R2        | applied   | ready  |
        """,
    "a job is forgotten only when no late verb can be meant for it": DEAD
    + """
        1200001 | Forgotten G             | too_early | dead |
        1200002 | Forgotten G             | applied   | -    |
        1200003 | Forgotten G             | unknown_job | -  |
        1200004 | Succeeded S             | unknown_job | -  |
        """,
    "not even when the verb came long after the end": DEAD
    + """
        1200001 | CancelRequested C       | illegal   | dead |
        1200002 | Forgotten G             | too_early | dead |
        1260001 | Forgotten G             | too_early | dead |
        1260002 | Forgotten G             | applied   | -    |
        1260003 | Enqueued E              | applied   | ready |
        """,
    "jobs that are not finished are not forgotten": READY
    + """
        9000000 | Forgotten G             | illegal | ready |
        """,
    "every end can be forgotten": """
        0       | Enqueued E              | applied | ready     |
        1       | CancelRequested C       | applied | cancelled |
        1200001 | Forgotten G1            | applied | -         |
        1200002 | Enqueued E2             | applied | ready     |
        1200003 | Leased L                | applied | active    |
        1200004 | Succeeded S             | applied | succeeded |
        2500000 | Forgotten G2            | applied | -         |
        2500001 | Enqueued E3             | applied | ready     |
        2500002 | Expired X               | applied | expired   |
        3800000 | Forgotten G3            | applied | -         |
        """,
    "time never runs backwards for a job": """
        100 | Enqueued E               | applied | ready  | time_ms=100
        50  | Leased L1                | applied | active | time_ms=100 started_at_ms=100
        200 | Progressed percent=1     | applied | active | time_ms=200
        90  | Failed F                 | applied | retrying | time_ms=200 due_at_ms=300
        """,
    "nothing is known of a job that isn't there": """
        0   | Leased L1                | unknown_job | - |
        0   | Succeeded S lease=L1     | unknown_job | - |
        0   | CancelRequested C        | unknown_job | - |
        """,
    "holders' lines on a waiting job are stale": READY
    + """
        1   | Succeeded S lease=x      | stale | ready |
        1   | Progressed P lease=x     | stale | ready |
        1   | LeaseExpired X lease=x   | stale | ready |
        1   | DeadLettered X           | illegal | ready |
        """,
    "types of later rules are refused": READY
    + """
        1   | Unblocked                | illegal | ready |
        1   | Replaced of=E not_after=5 | illegal | ready |
        """,
}

STORIES |= VERB_STORIES | UNIQUE_STORIES | SERIAL_STORIES | GROUP_STORIES


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str) -> None:
    play(STORIES[name])


@pytest.mark.parametrize("name", OF_RULES_1)
def test_story_of_rules_1(name: str) -> None:
    play(OF_RULES_1[name], rules=1)


@pytest.mark.parametrize("name", OF_RULES_2)
def test_story_of_rules_2(name: str) -> None:
    play(OF_RULES_2[name], rules=2)


@pytest.mark.parametrize("name", OF_RULES_3)
def test_story_of_rules_3(name: str) -> None:
    play(OF_RULES_3[name], rules=3)


@pytest.mark.parametrize("name", OF_RULES_4)
def test_story_of_rules_4(name: str) -> None:
    play(OF_RULES_4[name], rules=4)


def test_the_stories_take_every_arrow_of_the_table() -> None:
    arrows = {
        (event, before, after)
        for event, row in TRANSITIONS.items()
        for before, afters in row.items()
        for after in afters
    }
    taken: set[tuple[str, str | None, str | None]] = set()
    for table in STORIES.values():
        story, before = Story(), None
        for row in table.strip().splitlines():
            story.play(row)
            after = story.job.state if story.job else None
            told = story.last
            about = told is not None and f"default/{JOB}" in (told.key, told.also.key if told.also else "")
            if told is not None and told.outcome == "applied" and about:
                taken.add((type(told.event).__name__, before, after))
            before = after
    assert taken == arrows


def test_stories_have_every_outcome() -> None:
    found = set(re.findall(r"\| *([a-z_]+) *\|", "\n".join(STORIES.values())))
    assert {
        "applied",
        "duplicate",
        "stale",
        "illegal",
        "conflict",
        "too_late",
        "too_early",
        "unknown_job",
    } <= found


def test_a_flood_of_refused_verbs_neither_grows_the_row_nor_forgets_an_accepted_one() -> None:
    story = play(
        READY + "\n1 | CancelRequested C | applied | cancelled |\n2 | RetryRequested R | applied | ready |"
    )
    for number in range(2 * MAX_VERDICTS):
        story.play(f"{3 + number} | RetryRequested flood-{number} | illegal | ready |")
    assert story.job is not None
    assert len(story.job.verdicts) == MAX_VERDICTS
    story.play("900 | CancelRequested C | duplicate | ready |")


def test_verdicts_are_pruned_when_the_job_is_next_touched() -> None:
    story = play(
        ACTIVE + "\n2 | RetryRequested R | illegal | active |\n60002 | Progressed | applied | active |"
    )
    assert [verdict.event_id for verdict in (story.job.verdicts if story.job else ())] == ["R"]
    story.play("60003 | Progressed | applied | active | verdicts=()")


def test_bodies_stand_in_the_job_by_their_hash() -> None:
    story = Story()
    line = b'{"type":"Enqueued","id":"E","job":"J","job_type":"t","payload":{"secret": 1},"metadata":null}'
    [folded] = story.fold.fold(2, 0, True, line)
    assert folded.after is not None
    assert len(folded.after.payload_hash) == 32
    assert folded.after.metadata_hash == b""
    assert not any(b"secret" in (value or b"") for _, value in story.fold.take_changes().rows)
