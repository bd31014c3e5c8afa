"""A fault as a row: a name, what it means, and steps that are sentences.

    Scenario("worker-killed", "a worker dies and stays away", steps=(kill("worker-0"), wait(35), start("worker-0")))

Figures count from the first step. When the last is done everything must heal by itself: the supervisor starts what
ended, and nobody else does anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

from tests.faults.clocks import FakeClock
from tests.faults.world import ClusterWorld, World


class Step(NamedTuple):
    """What is done, in words and in deed."""

    says: str
    act: Callable[[World], object]


@dataclass(frozen=True)
class Scenario:
    """One fault. See the module.

    ``before``: steps that only prepare. ``needs``: "network", "mounts" or "faketime". ``clocks``: roles whose wall
    clock can jump. ``disks``: size in MB of the disk that a role has for itself. ``heals`` false: the log itself is
    gone, so that the steps say what must be seen, and nothing is left to check.
    """

    name: str
    about: str
    steps: tuple[Step, ...]
    before: tuple[Step, ...] = ()
    log: Literal["kafka", "embedded"] = "kafka"
    needs: frozenset[str] = frozenset()
    clocks: tuple[str, ...] = ()
    disks: Mapping[str, int] = field(default_factory=dict[str, int])
    heals: bool = True
    short: bool = False


def kill(*names: str) -> Step:
    """SIGKILL; they stay away until started."""
    return Step(f"kill -9 {', '.join(names)}", lambda world: [world.roles[name].kill() for name in names])


def crash(*names: str) -> Step:
    """SIGKILL; the supervisor starts them again."""
    return Step(
        f"kill -9 {', '.join(names)}, started again by the supervisor",
        lambda world: [world.roles[name].end_at_once() for name in names],
    )


def start(*names: str) -> Step:
    """Start what was killed or stopped."""
    return Step(f"start {', '.join(names)}", lambda world: [world.roles[name].start() for name in names])


def stop(*names: str) -> Step:
    """SIGTERM; they stay away until started."""
    return Step(f"stop {', '.join(names)}", lambda world: [world.roles[name].stop() for name in names])


def suspend(*names: str) -> Step:
    """SIGSTOP."""
    return Step(f"SIGSTOP {', '.join(names)}", lambda world: [world.roles[name].suspend() for name in names])


def resume(*names: str) -> Step:
    """SIGCONT."""
    return Step(f"SIGCONT {', '.join(names)}", lambda world: [world.roles[name].resume() for name in names])


def wait(seconds: float) -> Step:
    """Let time pass."""
    return Step(f"{seconds:g} s", lambda world: world.wait(seconds))


def wait_ready() -> Step:
    """Until all roles are ready."""
    return Step("until all are ready", lambda world: world.until("all roles are ready", world.all_ready, 90))


def delete_folder(name: str) -> Step:
    """Remove what a role keeps on its disk."""
    return Step(f"delete the folder of {name}", lambda world: shutil.rmtree(world.roles[name].data))


def fill_disk(name: str, leave_mb: int = 0) -> Step:
    """No more room."""
    left = f" but for {leave_mb} MB" if leave_mb else ""
    return Step(f"fill the disk of {name}{left}", lambda world: world.fill_disk(name, leave_mb << 20))


def free_disk(name: str) -> Step:
    """Room again."""
    return Step(f"free the disk of {name}", lambda world: world.free_disk(name))


def shift_clock(name: str, seconds: int) -> Step:
    """A role's wall clock jumps to so many seconds off."""
    return Step(f"clock of {name} {seconds:+d} s", lambda world: world.clock(name).set(seconds))


# Brokers and the network between


def on_cluster(says: str, act: Callable[[ClusterWorld], object]) -> Step:
    """A step that needs brokers."""
    return Step(says, lambda world: act(cast(ClusterWorld, world)))


def kill_brokers(*which: str) -> Step:
    return on_cluster(
        f"kill -9 of brokers: {', '.join(which)}", lambda w: [w.node(one).kill() for one in which]
    )


def start_brokers(*which: str) -> Step:
    def act(world: ClusterWorld) -> None:
        # All at once: with two of three gone, neither can serve before the other is there.
        for one in which:
            world.node(one).begin()
        for one in which:
            world.node(one).wait_until_served()

    return on_cluster(f"start brokers: {', '.join(which)}", act)


def suspend_brokers(*which: str) -> Step:
    return on_cluster(
        f"SIGSTOP of brokers: {', '.join(which)}", lambda w: [w.node(one).suspend() for one in which]
    )


def resume_brokers(*which: str) -> Step:
    return on_cluster(
        f"SIGCONT of brokers: {', '.join(which)}", lambda w: [w.node(one).resume() for one in which]
    )


def stop_broker(which: str) -> Step:
    return on_cluster(f"stop of broker: {which}", lambda w: w.node(which).stop())


def _members(world: ClusterWorld, names: tuple[str, ...]) -> list[str]:
    return [name if name in world.roles else f"broker-{world.node(name).number}" for name in names]


def cut(*names: str) -> Step:
    """Nobody reaches them, nor they anybody."""
    return on_cluster(f"cut off {', '.join(names)}", lambda w: w.network.cut(*_members(w, names)))


def isolate(*names: str) -> Step:
    """They don't reach each other; all others reach them."""
    return on_cluster(
        f"cut {', '.join(names)} from each other", lambda w: w.network.isolate(*_members(w, names))
    )


def mend(*names: str) -> Step:
    """The network is whole again."""
    return on_cluster(f"mend {', '.join(names)}", lambda w: w.network.mend(*_members(w, names)))


def shift_broker_clock(which: str, seconds: int) -> Step:
    """A broker's wall clock, which stamps what it takes; the first time it is started anew under a clock of its own."""

    def act(world: ClusterWorld) -> None:
        node = world.node(which)
        clock = world.remembered.get(f"clock {which}")
        if clock is None:
            clock = world.remembered[f"clock {which}"] = FakeClock(world.folder, f"broker-{which}")
            node.stop()
            node.environment.update(clock.environment)
            node.start()
        clock.set(seconds)

    return on_cluster(f"clock of broker {which} {seconds:+d} s", act)


# What must be seen


def ends_saying(name: str, text: str, *, within_s: float = 60, code: int | None = None) -> Step:
    """The role ends by itself, not with success, and says why."""

    def act(world: World) -> None:
        role = world.roles[name]
        role.abandon()
        found = role.wait_ended(within_s)
        assert found != 0, f"{name} ended as if all were well:\n{role.tail()}"
        assert code is None or found == code, f"{name} ended with {found}:\n{role.tail()}"
        assert text in role.said(), f"{name} does not say {text!r}:\n{role.tail()}"

    return Step(f"{name} ends saying {text!r}", act)
