"""Where processes run, and how they are cut off from each other.

:class:`Namespaces` gives every member a network namespace of its own, all on one bridge: taking a member's port off
the bridge is a cable pulled, with nobody to tell either side (no reset, no refusal, only silence). Isolated ports are
on the bridge and reach everybody but each other. It needs the :mod:`~tests.faults.capsule`, in which all of it
vanishes by itself at the end.

:class:`Loopback` is for machines that allow none of this: everybody on 127.0.0.1, and nobody can be cut off.
"""

from __future__ import annotations

import subprocess
from typing import Protocol

from tests.kafka_broker import HOST
from tests.waiting import free_port

BRIDGE = "faults0"
_SUBNET = "10.77.0"


class Network(Protocol):
    """Members by name; a member is there as soon as it was asked for."""

    can_cut: bool

    def host(self, member: str) -> str:
        """The address on which others reach it."""
        ...

    def port(self, usual: int) -> int:
        """A port for a member to listen on."""
        ...

    def wrapper(self, member: str) -> tuple[str, ...]:
        """The command that runs another command as this member."""
        ...

    def cut(self, *members: str) -> None:
        """Nobody reaches these members any more, nor they each other."""
        ...

    def isolate(self, *members: str) -> None:
        """These members do not reach each other any more; everybody else reaches all of them."""
        ...

    def mend(self, *members: str) -> None:
        """Undo both."""
        ...


class Loopback:
    """Everybody on 127.0.0.1."""

    can_cut = False

    def host(self, member: str) -> str:
        return HOST

    def port(self, usual: int) -> int:
        return free_port()

    def wrapper(self, member: str) -> tuple[str, ...]:
        return ()

    def cut(self, *members: str) -> None:
        raise NotImplementedError("nobody can be cut off on the loopback interface")

    def isolate(self, *members: str) -> None:
        raise NotImplementedError("nobody can be isolated on the loopback interface")

    def mend(self, *members: str) -> None:
        """Nothing was cut."""


class Namespaces:
    """A namespace a member, on one bridge; this process is on the bridge itself, as .1."""

    can_cut = True

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{_SUBNET}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")

    def host(self, member: str) -> str:
        return f"{_SUBNET}.{self._number(member)}"

    def port(self, usual: int) -> int:
        return usual

    def wrapper(self, member: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", f"m{self._number(member)}")

    def cut(self, *members: str) -> None:
        for member in members:
            _ip("link", "set", self._port(member), "nomaster")

    def isolate(self, *members: str) -> None:
        for member in members:
            _ip("link", "set", self._port(member), "type", "bridge_slave", "isolated", "on")

    def mend(self, *members: str) -> None:
        for member in members:
            port = self._port(member)
            _ip("link", "set", port, "master", BRIDGE)
            _ip("link", "set", port, "type", "bridge_slave", "isolated", "off")

    def _port(self, member: str) -> str:
        return f"port{self._number(member)}"

    def _number(self, member: str) -> int:
        number = self._numbers.get(member)
        if number is None:
            number = self._numbers[member] = len(self._numbers) + 2
            self._seat(f"m{number}", f"port{number}", f"{_SUBNET}.{number}/24")
        return number

    def _seat(self, namespace: str, port: str, address: str) -> None:
        _ip("netns", "add", namespace)
        _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", port, "master", BRIDGE, "up")
        inside = ("-n", namespace)
        _ip(*inside, "address", "add", address, "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
