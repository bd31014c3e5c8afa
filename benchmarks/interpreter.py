"""The Python that everything written in Python is measured with: the fastest that this machine has.

A Python that was built without its optimisations, as version managers do by default, runs the same program half as
fast as one from a distribution or an official image, which is what servers run. So each that is at hand runs a short
calculation, and where another one wins clearly, an environment with the very same packages is made for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.installing import CACHE, NotInstalled, Step, once, run

ROOT = Path(__file__).resolve().parent.parent
HOME = CACHE / "penstock"
HOME_PYTHON = HOME / "bin" / "python"
LOCK = ROOT / "requirements.lock"
CLEARLY = 1.1
"""Times as fast as the one that asks: less is not worth another environment."""

_CALCULATION = """
import sys, time
if sys.version_info < (3, 11): sys.exit(1)
import ensurepip, venv
class Pair:
    __slots__ = ("left", "right")
    def __init__(self, left): self.left, self.right = left, 0
def add(left, right): return left + right
best, kept = 9e9, {}
for _ in range(5):
    began = time.process_time()
    for number in range(100_000):
        pair = kept[number & 1023] = Pair(number)
        pair.right = add(number, pair.left)
    best = min(best, time.process_time() - began)
print(best)
"""


def _seconds(python: str) -> float | None:
    """How long the calculation takes; None where it cannot be used."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _CALCULATION], capture_output=True, text=True, timeout=60, check=True
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def fastest() -> str:
    """The interpreter to use: this one, unless another is clearly faster."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin"]
    names = ("python3", *(f"python3.{minor}" for minor in range(11, 20)))
    found = {str((Path(folder) / name).resolve()) for folder in folders for name in names if folder}
    mine = str(Path(sys.executable).resolve())
    times = {path: seconds for path in {*found, mine} if (seconds := _seconds(path)) is not None}
    best = min(times, key=lambda path: times[path], default=mine)
    return best if times.get(mine, 0.0) > CLEARLY * times.get(best, 0.0) else mine


def use_fastest() -> None:
    """Go on in the fastest Python, with the packages of the lock file. Returns where this is the one."""
    if Path(sys.prefix) == HOME:
        return
    python = fastest()
    if python == str(Path(sys.executable).resolve()):
        return
    try:
        once(
            Step(
                f"{python}, the fastest Python here",
                (LOCK, ROOT / "pyproject.toml"),
                HOME_PYTHON,
                lambda: _make_home(python),
            ),
            CACHE / "penstock.ready",
            python,
        )
    except NotInstalled as error:
        print(f"{python} would be faster, but could not be set up: {error}", flush=True)
        return
    os.execv(HOME_PYTHON, [str(HOME_PYTHON), "-m", "benchmarks.run", *sys.argv[1:]])


def _make_home(python: str) -> None:
    pip = [str(HOME_PYTHON), "-m", "pip", "install", "--quiet", "--no-deps"]
    shutil.rmtree(HOME, ignore_errors=True)
    run([python, "-m", "venv", str(HOME)], ROOT)
    run([*pip, "--require-hashes", "-r", str(LOCK)], ROOT)
    run([*pip, "--no-build-isolation", "-e", str(ROOT)], ROOT)
