"""Set-up of the peers, once: what their servers, libraries and programs need, in `benchmarks/.venv`.

Servers come from the distribution's packages (with apt-get, as root or through sudo), the rest through pip, go and
npm from whatever registries these are set to use. A stamp with the hash of what was asked for says that it is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import postgres_folder

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
CACHE = HERE / ".venv"
"""Has this name for `.gitignore` and all tools to pass it by."""
PEER_BIN = CACHE / "python" / "bin"
PEER_PYTHON = PEER_BIN / "python"
GO_PROGRAM = CACHE / "go" / "peers"
NODE = CACHE / "node"
GO_NEEDED = (1, 21)
"""Any from here on fetches the toolchain that `go.mod` asks for by itself."""


class NotInstalled(Exception):
    """A part of the set-up that this machine does not give; the peers that need it are left out, and it is said so."""


class Step(NamedTuple):
    """One thing to install: ``inputs`` are the files that it depends on, ``product`` what must be there after."""

    name: str
    inputs: Sequence[Path]
    product: Path
    run: Callable[[], None]


def install(step: str) -> None:
    """Install what ``step`` (``python``, ``go``, ``node``, ``redis``, ``postgres``) names unless it is there."""
    if step in ("redis", "postgres"):
        _install_server(step)
        return
    once(STEPS[step], CACHE / f"{step}.ready", sys.base_prefix if step == "python" else "")


def once(step: Step, stamp: Path, asked: str = "") -> None:
    """Do what the step says, unless it was done for the same inputs and for what else was asked."""
    digest = hashlib.sha256(asked.encode())
    for path in step.inputs:
        digest.update(path.read_bytes())
    if step.product.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    print(f"Setting up {step.name} ...", flush=True)
    CACHE.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    step.run()
    stamp.write_text(digest.hexdigest())


def run(command: Sequence[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-1_500:]}")


def _python() -> None:
    shutil.rmtree(CACHE / "python", ignore_errors=True)
    run([sys.executable, "-m", "venv", str(CACHE / "python")], HERE)
    run([str(PEER_PYTHON), "-m", "pip", "install", "--quiet", "-r", str(PEERS / "requirements.txt")], HERE)


def _go() -> None:
    if shutil.which("go") is None:
        raise NotInstalled("there is no `go`; River and asynq need Go 1.21 or newer")
    run(["go", "build", "-o", str(GO_PROGRAM), "."], PEERS / "go", GOFLAGS="-buildvcs=false")


def _node() -> None:
    if shutil.which("npm") is None:
        raise NotInstalled("there is no `npm`; BullMQ needs Node.js 20 or newer")
    NODE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PEERS / "node" / name, NODE / name)
    run(["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"], NODE)


STEPS = {
    "python": Step("the Python peers", (PEERS / "requirements.txt",), PEER_PYTHON, _python),
    "go": Step(
        "River and asynq", (*sorted((PEERS / "go").glob("*.go")), PEERS / "go/go.sum"), GO_PROGRAM, _go
    ),
    "node": Step("BullMQ", (PEERS / "node/package-lock.json",), NODE / "node_modules", _node),
}


def _install_server(name: str) -> None:
    present = shutil.which("redis-server") if name == "redis" else postgres_folder()
    if present:
        return
    package = {"redis": "redis-server", "postgres": "postgresql"}[name]
    if shutil.which("apt-get") is None:
        raise NotInstalled(f"please install {package}")
    print(f"Installing {package} ...", flush=True)
    # The packages start a server of their own unless this file says otherwise; it is left as it was found.
    policy = Path("/usr/sbin/policy-rc.d")
    sudo = [] if os.getuid() == 0 else ["sudo", "-n"]
    forbid = f"printf '#!/bin/sh\\nexit 101\\n' > {policy} && chmod 755 {policy}"
    guarded = not policy.exists()
    if guarded:
        run([*sudo, "sh", "-c", forbid], HERE)
    try:
        run([*sudo, "apt-get", "update", "-qq"], HERE)
        command = [*sudo, "apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        run(command, HERE, DEBIAN_FRONTEND="noninteractive")
    finally:
        if guarded:
            run([*sudo, "rm", "-f", str(policy)], HERE)
