"""Hypothesis strategies over what may stand on a partition's log."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.state.writing import OPS, Op

ops: st.SearchStrategy[list[Op]] = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(0, 4), st.integers(0, 400)), max_size=80
)
"""A log's making; small enough that jobs meet, large enough that they end and begin again."""

cuts: st.SearchStrategy[list[int]] = st.lists(st.integers(1, 6), min_size=1, max_size=40)
"""After how many records each commit comes; used over and over."""
