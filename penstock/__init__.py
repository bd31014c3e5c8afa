"""Penstock: a distributed job platform on an append-only log."""
