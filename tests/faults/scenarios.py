"""All faults, in the order in which they are told in the documentation."""

from __future__ import annotations

from tests.faults.destroying import (
    cut_log,
    damage_log,
    half_write,
    recreate_jobs_topic,
    restore_log,
    trim_jobs_topic,
)
from tests.faults.scenario import (
    Scenario,
    Step,
    crash,
    cut,
    delete_folder,
    ends_saying,
    fill_disk,
    free_disk,
    isolate,
    kill,
    kill_brokers,
    mend,
    resume,
    resume_brokers,
    shift_broker_clock,
    shift_clock,
    start,
    start_brokers,
    stop,
    stop_broker,
    suspend,
    suspend_brokers,
    wait,
    wait_ready,
)

NETWORK = frozenset({"network"})
MOUNTS = frozenset({"mounts"})
FAKETIME = frozenset({"faketime"})

ORCHESTRATORS = ("orchestrator-0", "orchestrator-1")
PROJECTIONS = ("projection-0", "projection-1")
APIS = ("api-0", "api-1")
WORKERS = ("worker-0", "worker-1", "worker-http")
EVERY_ROLE = (*ORCHESTRATORS, *PROJECTIONS, *APIS, *WORKERS)


def refused_when_cut(count: int) -> tuple[Step, ...]:
    """The embedded log lacks its last bytes: it is not opened, and says that acknowledged records are lost."""
    return (cut_log("dev", count), start("dev"), ends_saying("dev", "acknowledged"), restore_log("dev"))


ROLES = (
    Scenario(
        "worker-killed",
        "a worker dies and stays away: its leases run out",
        (kill("worker-0"), wait(38), start("worker-0")),
    ),
    Scenario(
        "worker-restarted",
        "a worker dies and comes back under its name",
        (crash("worker-0"), wait(8)),
    ),
    Scenario(
        "worker-suspended",
        "a worker sleeps longer than its leases, then goes on as if nothing were",
        (suspend("worker-0"), wait(45), resume("worker-0"), wait(5)),
    ),
    Scenario(
        "http-worker-suspended",
        "the same to a worker that speaks HTTP",
        (suspend("worker-http"), wait(45), resume("worker-http"), wait(5)),
    ),
    Scenario(
        "workers-killed",
        "all workers die at once and come back",
        (crash(*WORKERS), wait(10)),
    ),
    Scenario(
        "orchestrator-killed",
        "an orchestrator dies; the other takes its partitions over",
        (kill("orchestrator-0"), wait(12), start("orchestrator-0"), wait_ready(), wait(4)),
    ),
    Scenario(
        "orchestrator-suspended",
        "a leader sleeps until it is deposed, wakes, and believes that it still leads",
        (suspend("orchestrator-0"), wait(20), resume("orchestrator-0"), wait(6)),
    ),
    Scenario(
        "orchestrators-suspended",
        "both leaders sleep, and wake one after the other",
        (
            suspend(*ORCHESTRATORS),
            wait(15),
            resume("orchestrator-1"),
            wait(6),
            resume("orchestrator-0"),
            wait(5),
        ),
    ),
    Scenario(
        "orchestrators-killed",
        "both orchestrators die",
        (crash(*ORCHESTRATORS), wait(10)),
    ),
    Scenario(
        "projection-killed",
        "a projection dies; reads go to the other",
        (kill("projection-0"), wait(10), start("projection-0"), wait_ready(), wait(2)),
    ),
    Scenario(
        "projection-suspended",
        "a projection sleeps; reads go to the other",
        (suspend("projection-0"), wait(20), resume("projection-0"), wait(3)),
    ),
    Scenario(
        "api-killed",
        "an API dies; producers ask the other, its HTTP worker waits",
        (kill("api-0"), wait(10), start("api-0"), wait_ready(), wait(3)),
    ),
    Scenario(
        "api-suspended",
        "an API and the gateway in it sleep longer than leases",
        (suspend("api-0"), wait(40), resume("api-0"), wait(5)),
    ),
    Scenario(
        "everything-killed",
        "every role dies in the same moment, and again while they come back",
        (crash(*EVERY_ROLE), wait(6), crash(*EVERY_ROLE), wait(4)),
    ),
)

BROKERS = (
    Scenario(
        "broker-killed",
        "the broker that leads a partition dies, and comes back",
        (kill_brokers("leader"), wait(15), start_brokers("leader"), wait(5)),
    ),
    Scenario(
        "broker-suspended",
        "the broker that leads a partition sleeps, and wakes in the belief that it leads",
        (suspend_brokers("leader"), wait(25), resume_brokers("leader"), wait(8)),
    ),
    Scenario(
        "two-brokers-killed",
        "two of three brokers die: no in-sync majority, no controller",
        (kill_brokers("leader", "other"), wait(25), start_brokers("leader", "other"), wait(8)),
    ),
    Scenario(
        "two-brokers-suspended",
        "two of three brokers sleep",
        (suspend_brokers("leader", "other"), wait(25), resume_brokers("leader", "other"), wait(8)),
    ),
    Scenario(
        "brokers-killed",
        "all brokers die at once",
        (
            kill_brokers("leader", "other", "third"),
            wait(10),
            start_brokers("leader", "other", "third"),
            wait(5),
        ),
    ),
    Scenario(
        "brokers-restarted",
        "a rolling restart of all brokers",
        (
            stop_broker("leader"),
            start_brokers("leader"),
            wait(12),
            stop_broker("other"),
            start_brokers("other"),
            wait(12),
            stop_broker("third"),
            start_brokers("third"),
            wait(8),
        ),
    ),
)

PARTITIONS = (
    Scenario(
        "broker-cut-off",
        "the broker that leads a partition is cut off from everybody",
        (cut("leader"), wait(30), mend("leader"), wait(8)),
        needs=NETWORK,
    ),
    Scenario(
        "brokers-cut-apart",
        "two brokers do not reach each other, but all others reach both",
        (isolate("leader", "other"), wait(30), mend("leader", "other"), wait(8)),
        needs=NETWORK,
    ),
    Scenario(
        "orchestrator-cut-off",
        "a leader is cut off, is deposed, and comes back",
        (cut("orchestrator-0"), wait(12), mend("orchestrator-0"), wait(8)),
        needs=NETWORK,
    ),
    Scenario(
        "worker-cut-off",
        "a worker is cut off for longer than its leases",
        (cut("worker-0"), wait(45), mend("worker-0"), wait(5)),
        needs=NETWORK,
    ),
    Scenario(
        "http-worker-cut-off",
        "a worker that speaks HTTP is cut off for longer than its leases",
        (cut("worker-http"), wait(45), mend("worker-http"), wait(5)),
        needs=NETWORK,
    ),
    Scenario(
        "api-cut-off",
        "an API, with the gateway in it, is cut off",
        (cut("api-0"), wait(20), mend("api-0"), wait(5)),
        needs=NETWORK,
    ),
    Scenario(
        "projection-cut-off",
        "a projection is cut off; reads go to the other",
        (cut("projection-0"), wait(20), mend("projection-0"), wait(5)),
        needs=NETWORK,
    ),
)

DISKS = (
    Scenario(
        "projection-disk-full",
        "the disk of a projection fills up",
        (fill_disk("projection-0"), wait(20), free_disk("projection-0"), wait(5)),
        needs=MOUNTS,
        disks={"projection-0": 192},
    ),
    Scenario(
        "orchestrator-disk-full",
        "the disk of an orchestrator fills up",
        (fill_disk("orchestrator-0"), wait(20), free_disk("orchestrator-0"), wait(5)),
        needs=MOUNTS,
        disks={"orchestrator-0": 192},
    ),
    Scenario(
        "log-disk-nearly-full",
        "the embedded log's disk has little left: writes are refused until there is room",
        (fill_disk("dev", leave_mb=40), wait(15), free_disk("dev"), wait(5)),
        log="embedded",
        needs=MOUNTS,
        disks={"dev": 512},
    ),
    Scenario(
        "log-disk-full",
        "the embedded log's disk is full to the last byte",
        (fill_disk("dev"), wait(15), free_disk("dev"), wait(5)),
        log="embedded",
        needs=MOUNTS,
        disks={"dev": 512},
    ),
    Scenario(
        "projection-folder-deleted",
        "the folder of a projection is deleted while that is stopped",
        (stop("projection-0"), delete_folder("projection-0"), start("projection-0"), wait_ready(), wait(2)),
    ),
    Scenario(
        "orchestrator-folder-deleted",
        "the folder of an orchestrator is deleted while that is stopped",
        (
            stop("orchestrator-0"),
            delete_folder("orchestrator-0"),
            start("orchestrator-0"),
            wait_ready(),
            wait(8),
        ),
    ),
    Scenario(
        "all-folders-deleted",
        "everything dies, and all folders are lost",
        (
            kill(*EVERY_ROLE),
            *(delete_folder(name) for name in (*ORCHESTRATORS, *PROJECTIONS)),
            start(*EVERY_ROLE),
            wait_ready(),
            wait(3),
        ),
    ),
)

LOG = (
    Scenario(
        "topic-recreated",
        "somebody deletes the jobs topic and makes it anew while roles run",
        (
            recreate_jobs_topic(refill=False),
            ends_saying("projection-0", "ends at offset 0"),
            ends_saying("orchestrator-0", "ends at offset 0"),
        ),
        heals=False,
    ),
    Scenario(
        "topic-replaced",
        "all roles are stopped, and find another topic of the same length when they start",
        (
            stop(*WORKERS, *APIS, *ORCHESTRATORS, *PROJECTIONS),
            recreate_jobs_topic(refill=True),
            start("projection-0", "orchestrator-0"),
            ends_saying("projection-0", "made anew"),
            ends_saying("orchestrator-0", "made anew"),
        ),
        heals=False,
    ),
    Scenario(
        "topic-trimmed",
        "records that a stopped projection has yet to fold are deleted",
        (
            stop("projection-0"),
            wait(5),
            trim_jobs_topic(),
            start("projection-0"),
            ends_saying("projection-0", "begins at offset"),
        ),
        heals=False,
    ),
    Scenario(
        "log-torn",
        "a crash leaves half a record at the end of the embedded log",
        (kill("dev"), half_write("dev"), start("dev"), wait_ready(), wait(2)),
        log="embedded",
    ),
    Scenario(
        "log-cut",
        "acknowledged records are missing at the end of the embedded log, cut at several places",
        (
            kill("dev"),
            *refused_when_cut(1),
            *refused_when_cut(7),
            *refused_when_cut(100),
            *refused_when_cut(4_000),
            *refused_when_cut(40_000),
            start("dev"),
            wait_ready(),
            wait(2),
        ),
        log="embedded",
    ),
    Scenario(
        "log-damaged",
        "bytes in the middle of the embedded log have changed",
        (
            kill("dev"),
            damage_log("dev"),
            start("dev"),
            ends_saying("dev", "damaged"),
            restore_log("dev"),
            start("dev"),
            wait_ready(),
            wait(2),
        ),
        log="embedded",
    ),
)

CLOCKS = (
    Scenario(
        "orchestrator-clock-ahead",
        "a leader's clock jumps an hour ahead, and is set right after 20 s",
        (shift_clock("orchestrator-0", 3_600), wait(20), shift_clock("orchestrator-0", 0), wait(6)),
        needs=FAKETIME,
        clocks=("orchestrator-0",),
    ),
    Scenario(
        "orchestrator-clock-behind",
        "a leader's clock jumps an hour back, and is set right after 20 s",
        (shift_clock("orchestrator-0", -3_600), wait(20), shift_clock("orchestrator-0", 0), wait(6)),
        needs=FAKETIME,
        clocks=("orchestrator-0",),
    ),
    Scenario(
        "worker-clock-behind",
        "the clocks of all workers jump an hour back, then those die and come back",
        (*(shift_clock(name, -3_600) for name in WORKERS), wait(5), crash(*WORKERS), wait(12)),
        needs=FAKETIME,
        clocks=WORKERS,
    ),
    Scenario(
        "api-clock-ahead",
        "the clocks of an API and a projection jump an hour ahead, and back",
        (
            shift_clock("api-0", 3_600),
            shift_clock("projection-0", 3_600),
            wait(15),
            shift_clock("api-0", 0),
            shift_clock("projection-0", 0),
            wait(5),
        ),
        needs=FAKETIME,
        clocks=("api-0", "projection-0"),
    ),
    Scenario(
        "broker-clock-jumps",
        "the clock of the broker that leads a partition jumps 45 s ahead, and back",
        (shift_broker_clock("leader", 45), wait(12), shift_broker_clock("leader", 0), wait(8)),
        before=(shift_broker_clock("leader", 0), wait_ready(), wait(12)),
        needs=FAKETIME,
    ),
)

ALL = (*ROLES, *BROKERS, *PARTITIONS, *DISKS, *LOG, *CLOCKS)
SHORT = ("everything-killed", "broker-killed", "log-cut")
