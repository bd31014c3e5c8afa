"""``python -m tests.faults [NAME...]``: play faults and print what they did. See the package.

Exit code 0 when every promise was kept, 1 when one was broken.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.faults import capsule, clocks, page, topics
from tests.faults.checker import Report
from tests.faults.network import Loopback, Namespaces, Network
from tests.faults.scenario import Scenario
from tests.faults.scenarios import ALL, SHORT
from tests.faults.world import ClusterWorld, DevWorld, World, say
from tests.kafka_cluster import NODES, Cluster, Seat

_BROKER_PORTS = (9_092, 9_093)


class Arena:
    """The network and the three brokers, which all scenarios use one after the other."""

    def __init__(self, stack: ExitStack) -> None:
        self.network: Network = Namespaces() if capsule.inside() else Loopback()
        self._stack = stack
        self._cluster: Cluster | None = None

    def has(self, need: str) -> bool:
        """Whether this machine lets a scenario have what it needs."""
        return clocks.library() is not None if need == "faketime" else capsule.inside()

    @property
    def cluster(self) -> Cluster:
        """The brokers, all of them up."""
        if self._cluster is None:
            seats = None
            if self.network.can_cut:
                seats = {number: self._seat(f"broker-{number}") for number in NODES}
            self._cluster = self._stack.enter_context(Cluster(seats=seats))
        return self._cluster

    def _seat(self, member: str) -> Seat:
        return Seat(self.network.host(member), _BROKER_PORTS, self.network.wrapper(member))

    def world(self, scenario: Scenario, folder: Path) -> World:
        """A fresh world for a scenario."""
        options = {"clocks": scenario.clocks, "disks": scenario.disks}
        if scenario.log == "embedded":
            return DevWorld(self.network, folder, **options)
        return ClusterWorld(self.network, folder, self.cluster, **options)

    def tidy(self, world: World) -> None:
        """Everything as it was before the scenario, also when that broke off."""
        self.network.mend(*world.roles, *(f"broker-{number}" for number in NODES))
        if not isinstance(world, ClusterWorld):
            return
        for node in self.cluster.nodes:
            node.resume()
            if node.environment:
                node.stop()
                node.environment.clear()
        self.cluster.start()
        bootstrap = self.cluster.bootstrap
        topics.delete(bootstrap, topics.of_namespace(bootstrap, world.topics.namespace))


def play(arena: Arena, scenario: Scenario) -> Report:
    """One scenario from its start to its verdict. What breaks it off is part of the verdict."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scenario-", ignore_cleanup_errors=True) as folder:
        world = arena.world(scenario, Path(folder))
        try:
            with world:
                _play(world, scenario)
        except Exception as error:  # noqa: BLE001 - the other faults are still to be played
            world.report.wrong.append("".join(traceback.format_exception(error)))
    arena.tidy(world)
    world.report.took_s = time.monotonic() - began
    return world.report


def _play(world: World, scenario: Scenario) -> None:
    world.begin()
    for step in scenario.before:
        step.act(world)
    world.wait(2)
    world.note_fault()
    for step in scenario.steps:
        say(f"    {step.says}")
        step.act(world)
    if scenario.heals:
        world.finish()


def _chosen(names: list[str], short: bool) -> list[Scenario]:
    wanted = list(SHORT) if short else names
    unknown = set(wanted) - {scenario.name for scenario in ALL}
    if unknown:
        sys.exit(f"no such faults: {', '.join(sorted(unknown))}; --list shows all")
    return [scenario for scenario in ALL if not wanted or scenario.name in wanted]


def play_all(scenarios: list[Scenario], keep: Path | None) -> dict[str, Report | None]:
    """By name; None for those that this machine does not allow. Figures are kept as they come."""
    found: dict[str, Report | None] = {}
    with ExitStack() as stack:
        arena = Arena(stack)
        for scenario in scenarios:
            missing = [need for need in sorted(scenario.needs) if not arena.has(need)]
            if missing:
                say(f"{scenario.name}: left out, needs {', '.join(missing)}")
                found[scenario.name] = None
                continue
            say(f"{scenario.name}: {scenario.about}")
            report = found[scenario.name] = play(arena, scenario)
            say(f"    {page.verdict(report)}")
            if keep is not None:
                _keep(keep, found)
    return found


def _keep(file: Path, found: dict[str, Report | None]) -> dict[str, Report | None]:
    """Put figures into a file beside those of earlier runs; all that are in it now."""
    plain = json.loads(file.read_text()) if file.exists() else {}
    plain |= {name: report and asdict(report) for name, report in found.items()}
    file.write_text(json.dumps(plain, indent=1))
    return {name: report and page.report_of(report) for name, report in plain.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description="Play faults on real processes.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name all faults")
    parser.add_argument("--short", action="store_true", help="those that the test suite runs")
    parser.add_argument("--json", metavar="FILE", help="keep the figures there, those of other faults too")
    parser.add_argument("--write", action="store_true", help="put all figures kept into docs/reliability.md")
    options = parser.parse_args(arguments)
    scenarios = _chosen(options.names, options.short)
    if options.list:
        for scenario in scenarios:
            sys.stdout.write(f"{scenario.name:28} {scenario.about}\n")
        return 0
    if capsule.wanted():
        # So that whoever is told to end takes the capsule and its folder along.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return capsule.run("tests.faults", arguments)
    began = time.monotonic()
    keep = Path(options.json) if options.json else None
    found = play_all(scenarios, keep)
    sys.stdout.write(f"{page.table(scenarios, found)}\n")
    kept = _keep(keep, found) if keep else found
    if options.write:
        page.write(page.table([scenario for scenario in ALL if scenario.name in kept], kept))
    wrong = sum(bool(report and report.wrong) for report in found.values())
    left_out = sum(report is None for report in found.values())
    sys.stdout.write(
        f"{len(found) - left_out} faults, {wrong} with broken promises, {left_out} left out,"
        f" {time.monotonic() - began:.0f} s\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
