"""`python -m tests.sim [--seeds N] [--from SEED] [--seed SEED]`: many runs, or one, with a summary at the end."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter

from tests.sim.run import simulate
from tests.sim.world import Violation


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.sim")
    arguments.add_argument("--seeds", type=int, default=200, help="how many")
    arguments.add_argument("--from", dest="start", type=int, default=0, help="the first one")
    arguments.add_argument("--seed", type=int, help="only this one")
    arguments.add_argument("--stats", action="store_true", help="what happened, by name")
    wanted = arguments.parse_args()
    seeds = range(wanted.start, wanted.start + wanted.seeds) if wanted.seed is None else [wanted.seed]
    total: Counter[str] = Counter()
    violations = 0
    for seed in seeds:
        try:
            total += simulate(seed)
        except Violation as violation:
            violations += 1
            print(violation, f"\nreplay: python -m tests.sim --seed {seed}\n", flush=True)
        except Exception:  # noqa: BLE001  # whatever the machine raises is a finding, and its seed must be told
            violations += 1
            traceback.print_exc()
            print(f"replay: python -m tests.sim --seed {seed}\n", flush=True)
    if wanted.stats:
        for name, count in sorted(total.items()):
            print(f"{count:>10} {name}")
    print(f"{len(seeds)} seeds, {total['steps']} steps, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
