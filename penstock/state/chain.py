"""The log digest, as the archive of the log keeps it too: see :mod:`penstock.log.chain`."""

from __future__ import annotations

from penstock.log.chain import FIRST_LINK, next_link

__all__ = ["FIRST_LINK", "next_link"]
