"""Real faults: Penstock's processes on three real brokers, under load, while things break.

A :class:`~tests.faults.scenario.Scenario` is a row: a name, what happens, and the steps that make it happen. Each gets
fresh topics and fresh processes; producers keep a ledger of what was acknowledged; when the last step is done and all
is quiet, :mod:`tests.faults.checker` holds the ledgers against the log, the read model and the folders of all roles.

    python -m tests.faults                 all of them, with a table of figures
    python -m tests.faults worker-killed   some of them
    python -m tests.faults --short         those that the test suite runs
    python -m tests.faults --list

What may happen and what may not: a job that was acknowledged is never lost and comes to exactly one end; a write whose
outcome a producer never learned may or may not be there, and if it is, it is a job like any other. Handlers may run
twice; no transition is ever accepted twice. Both are counted.
"""
