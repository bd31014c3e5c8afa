"""Sizes that everything agrees on. Writers check them before they write; readers refuse what is beyond."""

from __future__ import annotations

MAX_BUNDLE_BYTES = 900_000
"""A record's value on the jobs log; below the broker's usual 1 MiB with room for headers."""

MAX_BUNDLE_LINES = 32_768
"""Lines in a record: the line number fits the fence's 15 bits."""

MAX_LINE_BYTES = 600_000
"""One event. Room for the largest payload, its envelope, metadata and tags."""

MAX_DEPTH = 64
"""Nesting of JSON arrays and objects in a line."""

MAX_PAYLOAD_BYTES = 256 * 1024
DEFAULT_PAYLOAD_BYTES = 64 * 1024
MAX_RESULT_BYTES = 256 * 1024
"""On a line of the log. Where there is a store for larger bodies, what is beyond these lies there."""

CLAIM_ABOVE_BYTES = 64 * 1024
"""Where there is such a store, results larger than this go to it."""
DEFAULT_CLAIM_BYTES = 16 * 1024 * 1024
MAX_CLAIM_BYTES = 1024 * 1024 * 1024
"""A body in that store."""

MIN_SWEPT_AGE_MS = 3_600_000
"""Of what is swept from that store: no call lasts so long, from its body in the store to its line on the log."""

MAX_CHECKPOINT_BYTES = 128 * 1024
MAX_ERROR_DETAILS_BYTES = 16 * 1024
MAX_ERROR_MESSAGE_CHARS = 2_000
MAX_OUTPUT_BYTES = 1024 * 1024
"""What an attempt has logged, as far as it is kept."""
MAX_OUTPUT_MESSAGE_CHARS = 8_000
MAX_PARTIAL_ERRORS = 100
"""Errors that an outcome in part may list."""
MAX_PARTIAL_ERRORS_BYTES = 128 * 1024
"""All of them together, as JSON: with the largest result they fit a line."""
MAX_PROGRESS_MESSAGE_CHARS = 500
MAX_TAGS = 32
MAX_METADATA_BYTES = 16 * 1024

QUARANTINE_HEAD_BYTES = 4_096
"""How much of a refused line is kept with its reason."""

DIGEST_EVERY_OFFSETS = 4_096
"""State digests are recorded at the first record past each multiple of this offset."""

MAX_DURATION_MS = 315_360_000_000
"""Ten years."""

MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: no time field may be later, so that every one can be written as RFC 3339."""
