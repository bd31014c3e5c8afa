"""A capsule for experiments that must leave nothing behind: namespaces of processes, network and mounts.

When the first process in it ends, however it ends, the kernel kills all others, and every interface and mount that was
made in it is gone. So a broker cannot be left running, a bridge cannot stay up and a full disk cannot stay mounted.

It takes root's rights over namespaces. Where they are missing (many containers), the same runs without a capsule, and
what needs one is left out and named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_MARK = "PENSTOCK_FAULTS_CAPSULE"
_ROOT = Path(__file__).resolve().parents[2]
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
# /run/netns is a folder of the whole machine: names made in it must stay in here.
_PREPARE = "ip link set lo up && mount -t tmpfs faults-run /run"


def mortal() -> tuple[str, ...]:
    """A command that runs another one, which is then killed when the thread that started it ends."""
    return ("setpriv", "--pdeathsig", "SIGKILL") if shutil.which("setpriv") else ()


def inside() -> bool:
    """Whether this process is in a capsule."""
    return os.environ.get(_MARK) == "1"


def wanted() -> bool:
    """Whether this process was started by hand and is yet to be put into one, or to be told that there is none."""
    return _MARK not in os.environ


def available() -> bool:
    """Whether this machine lets us make one."""
    if any(shutil.which(tool) is None for tool in ("unshare", "ip", "mount")):
        return False
    tried = [
        "ip link add faults0 type bridge",
        "ip netns add faults",
        "ip link add faults1 type veth peer name faults2",
    ]
    probe = " && ".join([_PREPARE, *tried])
    done = subprocess.run([*_UNSHARE, "sh", "-c", probe], capture_output=True, check=False, timeout=30)
    return done.returncode == 0


def run(module: str, arguments: Sequence[str], *, timeout_s: float | None = None) -> int:
    """Run ``python -m module arguments`` in a capsule if there can be one, in a folder that goes away; its exit code.

    Raises:
        TimeoutExpired: it took longer than ``timeout_s``, and was killed.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryDirectory(prefix="penstock-faults-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "TMPDIR": folder, _MARK: "0"}
        if available():
            environment[_MARK] = "1"
            command = [*_UNSHARE, "sh", "-c", f'{_PREPARE} && exec "$@"', "sh", *command]
        done = subprocess.run(
            [*mortal(), *command], cwd=_ROOT, env=environment, timeout=timeout_s, check=False
        )
        return done.returncode
