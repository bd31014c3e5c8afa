"""Two nodes on real Kafka: each leads a part of the partitions and answers for all; one is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.processes import Stack, http, penstock_json
from tests.acceptance.test_kill_roles import Load, caught_up, leads, run_probe
from tests.waiting import wait_for

NODES = ("node-0", "node-1")


def wait_for_all(server: str, jobs: int) -> None:
    """Until so many have succeeded, and there are no others."""
    wait_for(
        "all jobs have ended",
        lambda: http("GET", f"{server}/api/v1/counts").json["states"] == {"succeeded": jobs},
        60,
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_node_is_killed_and_the_other_leads_and_answers(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace, nodes=len(NODES))
        stack.start()
        wait_for("both lead", lambda: sum(leads(stack, name) for name in NODES) == 4)
        with Load(server) as load:
            for number, victim in enumerate(NODES):
                before = len(load.accepted)
                wait_for("jobs come in", lambda before=before: len(load.accepted) > before + 20)
                stack[victim].kill()
                run_probe(server, f"probe-without-{number}")
                stack[victim].start().wait_ready()
                run_probe(server, f"probe-{number}")
        jobs = len(load.accepted) + 4
        wait_for_all(server, jobs)
        assert stack["worker"].stop() == 0
        assert stack["node-0"].stop() == 0
        wait_for("the other leads all", lambda: leads(stack, "node-1") == 4)
        partitions = wait_for("it has folded all of it", lambda: caught_up(server))
        live = {entry["partition"]: (entry["next_offset"], entry["digest"]) for entry in partitions}
        assert stack["api"].stop() == 0
        assert stack["node-1"].stop() == 0
        log = {
            name: stack["api"].environment[name]
            for name in stack["api"].environment
            if name != "PENSTOCK_DATA"
        }
        rebuilt = penstock_json(
            "projection", "rebuild", "--into", "rebuilt", folder=stack.folder, environment=log
        )
        assert {
            entry["partition"]: (entry["next_offset"], entry["digest"]) for entry in rebuilt["partitions"]
        } == live
        for name in NODES:
            environment = {**log, "PENSTOCK_DATA": str(stack.folder / name)}
            verified = penstock_json("verify", folder=stack.folder, environment=environment)
            assert verified["ok"], verified
            assert all(partition["compared"] for partition in verified["partitions"])


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nodes_with_shares_of_the_partitions(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    """Two nodes have the even partitions, one the odd ones: all is led and answered for, with one of them gone too."""
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace, nodes=3, shares=2)
        stack.start()
        wait_for("the odd ones are led", lambda: leads(stack, "node-1") == 2)
        wait_for("the even ones are led", lambda: leads(stack, "node-0") + leads(stack, "node-2") == 2)
        with Load(server) as load:
            wait_for("jobs come in", lambda: len(load.accepted) > 20)
            stack["node-0"].kill()
            wait_for("the other leads the even ones", lambda: leads(stack, "node-2") == 2)
            assert leads(stack, "node-1") == 2
            before = len(load.accepted)
            wait_for("jobs come in", lambda: len(load.accepted) > before + 20)
        jobs = len(load.accepted)
        wait_for_all(server, jobs)
        assert len(wait_for("all is folded", lambda: caught_up(server))) == 4
