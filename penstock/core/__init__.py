"""Verbs: the pure rules. Given the same lines in the same order, everyone who runs this reaches the same state.

::

    a record ──▶ partition.PartitionFold ──▶ job.apply ──▶ effects
                    │  lines, epochs,          │  may it?     what it does to the job
                    ▼  forwards, quarantine    ▼
                  rows, digest               job_state.Job

Nothing here reads a clock, draws a number, waits, logs or touches a disk.
"""
