"""Decides what happens next in a partition: leases, timers, delivery, leadership."""
