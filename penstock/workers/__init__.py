"""Running jobs: tasks as users write them, the runtime that runs them, and the ways it reaches the jobs.

How the parts hang together, from the user's code outwards::

    @task functions ── Task, Arguments            what a handler is and what it takes
          │
       Worker (runtime) ── Backlog, Executor,     order, slots, stopping, outcomes;
          │                RunTimes               measures run times to know how much to prefetch
          │  Transport / Recipient
          ├─────────────────────────┐
    LogTransport               HttpTransport      the same worker on the log, or behind the HTTP gateway
          │                         │
    SessionHub ── Session, Credits  └── POST /worker/fetch, report, heartbeat
          │       OutcomeWriter
    work and signals topics (in), workers and jobs topics (out)

The gateway of the API is a :class:`~penstock.workers.hub.SessionHub` with one session for each worker that it
speaks for.

What fails, and what then: heartbeats that cannot be written for nearly the length of a lease end the handlers,
for another worker may hold their jobs by then; an outcome that cannot be written is written again until it can;
a delivery that comes twice runs once; a thread that cannot be stopped keeps its slot, and what it returns is
dropped.
"""
