"""Benchmarks: Penstock measured side by side with other job queues. Run with `make bench`."""
