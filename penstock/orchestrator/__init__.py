"""Decides what happens next in a partition: leases, timers, delivery, leadership.

::

    service ── Orchestrator            the shell: reads the log, asks the clocks, steps the machine
       │   └── outbox, clock           carries out what was decided; the log's time
       ▼
    machine ── OrchestratorMachine     step(inputs, now) -> outputs, for all partitions together
       │   ├── leadership              who is alive, and who should lead what
       │   ├── fleet                   the workers, and the room that each has
       │   └── dispatcher              who gets which of the jobs that wait
       ▼
    partition ── PartitionMachine      one partition: follows its fold, and leads it or not
           ├── backlog, timers         what may run now, and what later
           ├── proposals, leases       what is being given, and what was
           ├── forwarder               lines that stand in the wrong place
           ├── lines, courier          what it writes to the log, and says to workers
           └── rows                    all of it as rows on disk, to be found again

Only ``service``, ``outbox`` and ``clock`` wait, read a clock or speak to anybody.
"""
