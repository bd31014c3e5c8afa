"""Nouns: everything that crosses a process boundary. No behaviour beyond encoding and checking."""
