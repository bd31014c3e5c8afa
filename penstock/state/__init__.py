"""Durable folding: a partition's fold kept in a key-value store together with the offset it has reached."""
