"""Stories of what rules 5 brought: batches and workflows."""

from __future__ import annotations

GROUP_STORIES = {
    "what a job is part of goes with it to its end, and decides nothing": """
        0   | Enqueued E batch=import workflow=w      | applied | ready     | batch=import workflow=w unique_key=
        1   | Enqueued E2 job=b~J batch=import        | applied | ready     |
        2   | Leased L1                               | applied | active    | batch=import workflow=w
        3   | Succeeded S lease=L1                    | applied | succeeded | batch=import workflow=w
        """,
    "it goes with keys of both kinds": """
        0   | Enqueued E batch=i concurrency_key=J unique.key=J | applied | ready | batch=i unique_key=J
        1   | Enqueued E2 job=b~J batch=i unique.key=J | conflict | ready | batch=i concurrency_key=J
        2   | Enqueued E3 job=c~J unique.key=J unique.on_conflict=replace | applied | cancelled | concurrency_key=J
        """,
    "it is part of what was asked for, and a batch is no workflow": """
        0   | Enqueued E batch=i                      | applied   | ready | workflow=
        1   | Enqueued E batch=i                      | duplicate | ready |
        2   | Enqueued E                              | conflict  | ready |
        3   | Enqueued E workflow=i                   | conflict  | ready |
        """,
    "it is a name, as a tag is": """
        0   | Enqueued E batch=not+a+name             | quarantined | - |
        1   | Enqueued E workflow=!                   | quarantined | - |
        2   | Enqueued E workflow=2026/11             | applied     | ready | workflow=2026/11
        """,
}

OF_RULES_4 = {
    "neither is known": """
        0   | Enqueued E batch=i workflow=!           | applied   | ready | batch= workflow=
        1   | Enqueued E                              | duplicate | ready |
        2   | Enqueued E2 job=b~J concurrency_key=J   | applied   | ready |
        """,
}
"""What the same lines did before rules 5."""
