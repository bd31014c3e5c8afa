"""Stories of what rules 3 brought: unique keys. J is the key, the home of these jobs, and the job that is watched."""

from __future__ import annotations

BEGUN = "0 | Enqueued E unique.key=J | applied | ready | unique_key=J"
STARTED = BEGUN + "\n1 | Leased L1 | applied | active |"
ANOTHER = "Enqueued E2 job=b~J unique.key=J"

UNIQUE_STORIES = {
    "who comes second is refused until the first has ended": BEGUN
    + f"""
        1   | {ANOTHER}                | conflict  | ready     |
        2   | Leased L1                | applied   | active    |
        3   | Enqueued E3 job=c~J unique.key=J | conflict | active |
        4   | Succeeded S              | applied   | succeeded |
        5   | Enqueued E4 job=d~J unique.key=J | applied  | succeeded |
        6   | Enqueued E5 job=e~J unique.key=J | conflict | succeeded |
        """,
    "a job that was refused stays so, and its like may come": BEGUN
    + f"""
        1   | {ANOTHER}                | conflict  | ready     |
        2   | CancelRequested C        | applied   | cancelled |
        3   | {ANOTHER}                | conflict  | cancelled |
        4   | Enqueued E3 job=c~J unique.key=J | applied | cancelled |
        600002 | {ANOTHER}             | conflict  | cancelled |
        """,
    "its memory ends": BEGUN
    + f"""
        1   | {ANOTHER}                | conflict  | ready     |
        2   | CancelRequested C        | applied   | cancelled |
        600002 | {ANOTHER}             | applied   | cancelled |
        """,
    "after not_after nothing begins": BEGUN
    + f"""
        1   | {ANOTHER} unique.not_after=+700000 | conflict  | ready     |
        2   | CancelRequested C        | applied   | cancelled |
        700001 | {ANOTHER} unique.not_after=700001 | conflict | cancelled |
        700002 | {ANOTHER} unique.not_after=700001 | too_late | cancelled |
        """,
    "the same job twice is no conflict": BEGUN
    + """
        1   | Enqueued E unique.key=J           | duplicate | ready |
        2   | Enqueued E2 unique.key=J payload=1 | conflict | ready |
        """,
    "other keys, other tenants and jobs without a key are free": BEGUN
    + """
        1   | Enqueued E2 job=b~J                              | applied | ready |
        2   | Enqueued E3 job=c~J tenant=other unique.key=J    | applied | ready |
        3   | Enqueued E4 job=d~K unique.key=K                 | applied | ready |
        4   | Enqueued E5 job=e~J tenant=other unique.key=J    | conflict | ready |
        """,
    "a job lives where its key does": """
        0   | Enqueued E unique.key=K                          | illegal | - |
        1   | Enqueued E2 unique.key=J unique.scope=period     | illegal | - |
        """,
    "until it is started": """
        0   | Enqueued E unique.key=J unique.scope=until_started | applied | ready |
        1   | Enqueued E2 job=b~J unique.key=J | conflict | ready    |
        2   | Leased L1                       | applied  | active    |
        3   | Enqueued E3 job=c~J unique.key=J unique.scope=until_started | applied | active |
        4   | Enqueued E4 job=d~J unique.key=J | conflict | active   |
        5   | Returned R                      | applied  | ready     |
        6   | Enqueued E5 job=e~J unique.key=J | conflict | ready    |
        """,
    "for a period, whatever becomes of it": """
        0   | Enqueued E unique.key=J unique.scope=period unique.period_ms=2000000 | applied | ready |
        1   | Leased L1                       | applied  | active    |
        2   | Succeeded S                     | applied  | succeeded |
        3   | Enqueued E3 job=c~J unique.key=J | conflict | succeeded |
        1300000 | Forgotten G                 | too_early | succeeded |
        1999999 | Enqueued E4 job=d~J unique.key=J | conflict | succeeded |
        2000000 | Forgotten G                 | too_early | succeeded |
        2599999 | Forgotten G                 | too_early | succeeded |
        2600000 | Forgotten G                 | applied  | -         |
        2600001 | Enqueued E5 job=e~J unique.key=J | applied | -     |
        """,
    "a deleted job holds no key": """
        0   | Enqueued E unique.key=J unique.scope=period unique.period_ms=5000 | applied | ready |
        1   | Deleted D                       | applied  | deleted   | unique_until_ms=5000
        2   | Enqueued E3 job=c~J unique.key=J | applied | deleted   |
        """,
    "what waits is replaced": BEGUN
    + f"""
        1   | {ANOTHER} unique.on_conflict=replace | applied   | cancelled | error_code=replaced last_event=E2
        2   | {ANOTHER} unique.on_conflict=replace | duplicate | cancelled |
        3   | Enqueued E3 job=c~J unique.key=J     | conflict  | cancelled |
        4   | Enqueued E4 job=d~J unique.key=J unique.on_conflict=replace | applied | cancelled |
        """,
    "whatever it waits for is": """
        0   | Enqueued E unique.key=J delay_ms=9   | applied | scheduled |
        1   | Held H                               | applied | held      |
        2   | Enqueued E2 job=b~J unique.key=J unique.on_conflict=replace | applied | cancelled | due_at_ms=0
        """,
    "a scheduled job is replaced": """
        0   | Enqueued E unique.key=J delay_ms=9   | applied | scheduled |
        1   | Enqueued id= job=b~J unique.key=J unique.on_conflict=replace | applied | cancelled | last_event=b~J
        """,
    "a retry is replaced": STARTED
    + """
        2   | Failed F                             | applied | retrying |
        3   | Enqueued E2 job=b~J unique.key=J unique.on_conflict=replace | applied | cancelled |
        """,
    "what runs is not replaced": STARTED
    + f"""
        2   | {ANOTHER} unique.on_conflict=replace | conflict | active    |
        3   | Succeeded S                          | applied  | succeeded |
        4   | {ANOTHER} unique.on_conflict=replace | conflict | succeeded |
        """,
    "what holds no key is not replaced": """
        0   | Enqueued E unique.key=J unique.scope=period unique.period_ms=5 | applied | ready |
        5   | Enqueued E2 job=b~J unique.key=J unique.on_conflict=replace | applied | ready |
        """,
    "a job is run again while its key is free": BEGUN
    + """
        1   | CancelRequested C                | applied  | cancelled |
        2   | RetryRequested R                 | applied  | ready     |
        3   | Enqueued E2 job=b~J unique.key=J | conflict | ready     |
        """,
    "and not while another has it": BEGUN
    + """
        1   | CancelRequested C                | applied   | cancelled |
        2   | Enqueued E2 job=b~J unique.key=J | applied   | cancelled |
        3   | RetryRequested R                 | conflict  | cancelled |
        4   | CancelRequested C2 job=b~J of=E2 | applied   | cancelled |
        5   | RetryRequested R                 | duplicate | cancelled |
        6   | RetryRequested R2                | applied   | ready     |
        7   | Enqueued E3 job=c~J unique.key=J | conflict  | ready     |
        8   | RetryRequested R3 job=b~J of=E2  | conflict  | ready     |
        """,
    "one that was started once runs again beside its successor": """
        0   | Enqueued E unique.key=J unique.scope=until_started | applied | ready |
        1   | Leased L1                        | applied  | active |
        2   | Failed F retryable=no            | applied  | dead   |
        3   | Enqueued E2 job=b~J unique.key=J unique.scope=until_started | applied | dead |
        4   | RetryRequested R                 | applied  | ready  |
        5   | Enqueued E3 job=c~J unique.key=J | conflict | ready  |
        """,
    "one that was never started takes its key again, or is refused": """
        0   | Enqueued E unique.key=J unique.scope=until_started | applied | ready |
        1   | Enqueued E2 job=b~J unique.key=J unique.on_conflict=replace | applied | cancelled |
        2   | RetryRequested R                 | conflict | cancelled |
        3   | CancelRequested C job=b~J of=E2  | applied  | cancelled |
        4   | RetryRequested R2                | applied  | ready     |
        5   | Enqueued E3 job=c~J unique.key=J | conflict | ready     |
        """,
    "a key goes with its job": BEGUN
    + """
        1   | CancelRequested C                | applied | cancelled |
        1300000 | Forgotten G                  | applied | -         |
        1300001 | Enqueued E2 job=b~J unique.key=J | applied | -     |
        """,
    "and stays with its next": BEGUN
    + """
        1   | CancelRequested C                | applied | cancelled |
        2   | Enqueued E2 job=b~J unique.key=J | applied | cancelled |
        1300000 | Forgotten G                  | applied | -         |
        1300001 | Enqueued E3 job=c~J unique.key=J | conflict | -    |
        """,
}

OF_RULES_2 = {
    "a unique key is not known": """
        0   | Enqueued E unique.key=K               | applied | ready | unique_key=
        1   | Enqueued E2 job=b~J unique.key=J      | applied | ready |
        2   | Enqueued E3 job=c~J unique.key=J unique.on_conflict=replace | applied | ready |
        3   | Enqueued E4 job=d~J unique=7          | applied | ready |
        """,
}
"""What the same lines did before rules 3."""
