"""Verbs: the pure rules. Given the same lines in the same order, everyone who runs this reaches the same state.

Nothing here reads a clock, draws a number, waits, logs or touches a disk.
"""
