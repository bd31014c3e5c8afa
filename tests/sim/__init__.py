"""A deterministic simulation of orchestrators, workers and producers on one log, under virtual time, with faults.

Everything random comes from one seed, so a failing run replays: `python -m tests.sim --seed 42`.
"""
