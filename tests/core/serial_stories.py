"""Stories of what rules 4 brought: concurrency keys. J is the key, the home of these jobs, and the one job watched."""

from __future__ import annotations

SERIAL_STORIES = {
    "a concurrency key goes with its job, and the fold turns nobody away": """
        0   | Enqueued E concurrency_key=J           | applied | ready  | concurrency_key=J unique_key=
        1   | Enqueued E2 job=b~J concurrency_key=J  | applied | ready  |
        2   | Leased L1                              | applied | active | concurrency_key=J
        3   | Failed F lease=L1 retryable=no         | applied | dead   | concurrency_key=J
        """,
    "it goes with a unique key of the same text": """
        0   | Enqueued E concurrency_key=J unique.key=J | applied  | ready     | unique_key=J concurrency_key=J
        1   | Enqueued E2 job=b~J unique.key=J          | conflict | ready     |
        2   | CancelRequested C                         | applied  | cancelled | concurrency_key=J
        3   | Enqueued E3 job=c~J unique.key=J concurrency_key=J | applied | cancelled |
        """,
    "a job that waits is replaced, and the one that takes its place has a turn": """
        0   | Enqueued E concurrency_key=J unique.key=J | applied | ready | concurrency_key=J
        1   | Enqueued E2 job=b~J unique.key=J unique.on_conflict=replace | applied | cancelled | concurrency_key=J
        """,
    "its home is that of the key": """
        0   | Enqueued E concurrency_key=K              | illegal | - |
        1   | Enqueued E2 concurrency_key=J unique.key=K | illegal | - |
        2   | Enqueued E3 concurrency_key=J             | applied | ready |
        """,
    "it is part of what was asked for": """
        0   | Enqueued E concurrency_key=J              | applied   | ready |
        1   | Enqueued E concurrency_key=J              | duplicate | ready |
        2   | Enqueued E                                | conflict  | ready |
        """,
}

OF_RULES_3 = {
    "a concurrency key is not known": """
        0   | Enqueued E concurrency_key=K              | applied   | ready | concurrency_key=
        1   | Enqueued E                                | duplicate | ready |
        2   | Enqueued E2 job=b~J unique.key=J concurrency_key=J | applied | ready |
        3   | Enqueued E3 job=c~J concurrency_key=7     | applied   | ready |
        """,
}
"""What the same lines did before rules 4."""
