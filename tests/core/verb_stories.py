"""Stories of what rules 2 brought: verbs of a single job, jobs that are put off, outcomes in part."""

from __future__ import annotations

READY = "0 | Enqueued E | applied | ready |"
ACTIVE = READY + "\n1 | Leased L1 | applied | active | attempt=1"
DEAD = ACTIVE + "\n2 | Failed F retryable=no | applied | dead |"
CANCELLING = ACTIVE + "\n2 | CancelRequested C | applied | active | cancel=C"

VERB_STORIES = {
    "a held job keeps its place": """
        0   | Enqueued E               | applied | ready | order=65536
        1   | Held H reason=why        | applied | held  | finished_at_ms=0
        2   | Leased L1                | illegal | held  |
        3   | Held H2                  | illegal | held  |
        4   | Unheld U                 | applied | ready | order=65536
        5   | Unheld U                 | duplicate | ready |
        5   | Unheld U2                | illegal | ready |
        """,
    "a held job waits for its time, and longer": """
        0   | Enqueued E delay_ms=100  | applied | scheduled | due_at_ms=100
        1   | Held H                   | applied | held      | due_at_ms=100
        2   | Due D                    | illegal | held      |
        3   | Unheld U                 | applied | scheduled | due_at_ms=100
        4   | Held H2                  | applied | held      |
        200 | Unheld U2                | applied | ready     | due_at_ms=0 order=229376
        """,
    "a retry is held": """
        0   | Enqueued E               | applied | ready     |
        1   | Leased L1                | applied | active    |
        2   | Held H                   | illegal | active    |
        2   | Failed F                 | applied | retrying  | due_at_ms=102
        3   | Held H2                  | applied | held      |
        4   | Unheld U                 | applied | retrying  | due_at_ms=102
        """,
    "a held job is cancelled": READY
    + """
        1   | Held H                   | applied | held      |
        2   | CancelRequested C        | applied | cancelled | finished_at_ms=2
        3   | Unheld U                 | illegal | cancelled |
        """,
    "a held job expires": """
        0   | Enqueued E expires_at=50 | applied | ready     |
        1   | Held H                   | applied | held      |
        51  | Expired X                | applied | expired   |
        """,
    "a waiting job is changed": """
        0   | Enqueued E               | applied | ready | priority=normal queue=default
        1   | Edited A changes.priority=high | applied | ready | priority=high order=65536
        1   | Edited B changes.queue=fast changes.pool=gpu | applied | ready | queue=fast pool=gpu order=65536
        1   | Edited C changes.timeout_ms=7 | applied | ready | timeout_ms=7
        2   | Edited C2 changes.expires_at=99 changes.max_attempts=2 | applied | ready | attempts_allowed=2
        2   | Edited C2 changes.timeout_ms=7 | duplicate | ready |
        2   | Edited C4 changes.run_at=1 | applied | ready | expires_at_ms=99 timeout_ms=7
        3   | Edited C3 changes.expires_at=0 | applied | ready | expires_at_ms=0 timeout_ms=7
        4   | Leased L1 seen=#2        | stale   | ready |
        5   | Leased L1                | applied | active |
        6   | Edited C5 changes.priority=low | illegal | active |
        """,
    "changes that are none are refused, and stay so": READY
    + """
        1   | Edited C                          | illegal | ready |
        1   | Edited C changes.priority=high    | duplicate | ready |
        1   | Edited C2 changes.priority=urgent | illegal | ready |
        1   | Edited C3 changes.unknown=1       | illegal | ready |
        1   | Edited C4 changes=7               | illegal | ready |
        1   | Edited C5 changes.queue=a/../b    | applied | ready |
        1   | Edited C6 changes.queue=no!name   | illegal | ready |
        """,
    "a job is put off, and brought forward": """
        0   | Enqueued E                     | applied | ready     |
        1   | Edited A changes.delay_ms=100  | applied | scheduled | due_at_ms=101 scheduled_at_ms=101
        2   | Edited B changes.run_at=50     | applied | scheduled | due_at_ms=50
        3   | Edited C changes.run_at=1      | applied | ready     | due_at_ms=0 order=163840
        4   | Edited D changes.run_at=2      | applied | ready     | order=163840
        """,
    "a retry is put off, and brought forward": """
        0   | Enqueued E                     | applied | ready    |
        1   | Leased L1                      | applied | active   |
        2   | Failed F                       | applied | retrying | due_at_ms=102
        3   | Edited A changes.run_at=500    | applied | retrying | due_at_ms=500
        4   | Edited B changes.run_at=4      | applied | ready    | attempt=1
        5   | Edited C changes.delay_ms=7    | applied | retrying | due_at_ms=12
        """,
    "a held job is put off": READY
    + """
        1   | Held H                         | applied | held      |
        2   | Edited A changes.run_at=90     | applied | held      | due_at_ms=90
        3   | Unheld U                       | applied | scheduled | due_at_ms=90
        """,
    "attempts are never cut below one more": """
        0   | Enqueued E                     | applied | ready    |
        1   | Leased L1                      | applied | active   |
        2   | Failed F                       | applied | retrying | attempts_allowed=5
        3   | Edited C changes.max_attempts=1 | applied | retrying | attempts_allowed=2
        """,
    "a retry is made at once": """
        0   | Enqueued E                     | applied | ready    |
        1   | Leased L1                      | applied | active   |
        2   | Failed F                       | applied | retrying | attempts_allowed=5
        3   | RetryRequested R               | applied | ready    | attempts_allowed=5 order=163840
        4   | Leased L2                      | applied | active   | attempt=2
        5   | Failed F2                      | applied | retrying |
        6   | RetryRequested R2 attempts=1   | applied | ready    | attempts_allowed=3
        """,
    "a waiting job is deleted": READY
    + """
        1   | Deleted D                | applied   | deleted | finished_at_ms=1
        1   | Deleted D                | duplicate | deleted |
        2   | Deleted D2               | illegal   | deleted |
        2   | RetryRequested R         | illegal   | deleted |
        2   | Unheld U                 | illegal   | deleted |
        3   | Enqueued E               | duplicate | deleted |
        3   | Enqueued E2 payload=1    | conflict  | deleted |
        1200000 | Forgotten G          | too_early | deleted |
        1200001 | Forgotten G2         | applied   | -       |
        """,
    "every waiting job can be deleted": """
        0   | Enqueued E delay_ms=5    | applied | scheduled |
        1   | Deleted D                | applied | deleted | due_at_ms=0
        1300000 | Forgotten G          | applied | -       |
        1300001 | Enqueued E2          | applied | ready   |
        1300002 | Held H               | applied | held    |
        1300003 | Deleted D2           | applied | deleted |
        2600000 | Forgotten G2         | applied | -       |
        2600001 | Enqueued E3          | applied | ready   |
        2600002 | Leased L1            | applied | active  |
        2600003 | Failed F             | applied | retrying |
        2600004 | Deleted D3           | applied | deleted |
        """,
    "a running job is not deleted": ACTIVE
    + """
        2   | Deleted D                | illegal   | active    |
        3   | Succeeded S              | applied   | succeeded |
        4   | Deleted D                | duplicate | succeeded |
        5   | Deleted D2               | applied   | deleted   | finished_at_ms=3
        """,
    "a dead job is deleted": DEAD + "\n3 | Deleted D | applied | deleted | finished_at_ms=2",
    "a cancelled job is deleted": READY
    + """
        1   | CancelRequested C        | applied | cancelled |
        2   | Deleted D                | applied | deleted   |
        """,
    "an expired job is deleted": """
        0   | Enqueued E expires_at=5  | applied | ready   |
        6   | Expired X                | applied | expired |
        7   | Deleted D                | applied | deleted |
        """,
    "a job succeeds in part": ACTIVE
    + """
        2   | Succeeded S errors=a,b   | applied | partial | error_code=a finished_at_ms=2
        3   | RetryRequested R         | applied | ready   | error_code= attempts_allowed=6
        4   | Leased L2                | applied | active  |
        5   | Succeeded S2 errors=c    | applied | partial |
        6   | Deleted D                | applied | deleted |
        """,
    "what succeeded in part is forgotten": ACTIVE
    + """
        2   | Succeeded S errors=a     | applied | partial |
        1300000 | Forgotten G          | applied | -       |
        """,
    "a job is snoozed at no cost": ACTIVE
    + """
        2   | Snoozed Z delay_ms=50    | applied   | scheduled | attempt=0 due_at_ms=52 outcome_id=Z
        2   | Snoozed Z delay_ms=50    | duplicate | scheduled |
        2   | Succeeded S lease=L1     | stale     | scheduled |
        52  | Due D                    | applied   | ready     |
        53  | Leased L2                | applied   | active    | attempt=1
        54  | Failed F                 | applied   | retrying  |
        55  | RetryRequested R         | applied   | ready     |
        56  | Leased L3                | applied   | active    | attempt=2
        57  | Snoozed Z2 delay_ms=5    | applied   | retrying  | attempt=1 due_at_ms=62
        63  | Due D2                   | applied   | ready     |
        64  | Leased L4                | applied   | active    | attempt=2
        65  | Snoozed Z3               | applied   | ready     | attempt=1
        """,
    "a snooze does not outlive a cancel": CANCELLING
    + "\n3 | Snoozed Z delay_ms=50 | applied | cancelled | attempt=0 due_at_ms=0",
    "a handler cancels its job": ACTIVE
    + "\n2 | Returned R cancel=true | applied | cancelled | attempt=0 finished_at_ms=2",
}

OF_RULES_1 = {
    "verbs of later rules are refused": READY
    + """
        1   | Held H                   | illegal | ready |
        1   | Edited C changes.priority=high | illegal | ready |
        1   | Deleted D reason=7       | illegal | ready |
        1   | Snoozed Z lease=L1       | illegal | ready |
        """,
    "a retry cannot be asked to be made at once": ACTIVE
    + """
        2   | Failed F                 | applied | retrying |
        3   | RetryRequested R         | illegal | retrying |
        """,
    "errors beside a success are not known": ACTIVE + "\n2 | Succeeded S errors=a,b | applied | succeeded |",
    "nor a handler's wish to cancel": ACTIVE + "\n2 | Returned R cancel=true | applied | ready |",
}
"""What the same lines did before rules 2."""
