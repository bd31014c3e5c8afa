"""Positions, fences and tokens: there and back, and bad ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas.errors import InvalidCursor
from penstock.schemas.position import (
    Position,
    fence,
    generation_of,
    ordinal,
    pack,
    parse,
    parse_token,
    token,
    unpack,
)

positions = st.builds(
    Position, st.integers(0, 10_000), st.integers(0, (1 << 40) - 1), st.integers(0, (1 << 15) - 1)
)


@given(positions)
def test_there_and_back(position: Position) -> None:
    assert parse(str(position)) == position
    assert unpack(position.partition, position.packed) == position
    assert pack(position.offset, position.line) == position.packed < 1 << 55


@given(positions, positions)
def test_packed_positions_order_a_partition(one: Position, other: Position) -> None:
    assert (one.packed < other.packed) == ((one.offset, one.line) < (other.offset, other.line))


@pytest.mark.parametrize("text", [
    "", ":", "1", "1:2", "1:2:3:4", "a:b:c", "1:2:", "-1:2:3", "1:-2:3", "+1:2:3", " 1:2:3", "1:2:3\n", "1:2:3.0",
    "１:2:3", "1:2:²", "1:2:32768", f"1:{1 << 40}:0", "1:9999999999999999:0", "1" * 16 + ":0:0", "0x1:2:3",
    "1_0:2:3",
])  # fmt: skip
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(InvalidCursor):
        parse(text)


@given(st.lists(positions, min_size=1))
def test_a_token_names_the_highest_position_of_each_partition(written: list[Position]) -> None:
    wanted = {
        position.partition: max(one for one in written if one.partition == position.partition)
        for position in written
    }
    assert parse_token(token(written)) == wanted


def test_tokens_as_people_paste_them() -> None:
    assert token([Position(2, 5, 1), Position(0, 9, 0), Position(2, 4, 7)]) == "0:9:0,2:5:1"
    assert parse_token(" 0:9:0 , 2:5:1 ,2:4:0") == {0: Position(0, 9, 0), 2: Position(2, 5, 1)}


@pytest.mark.parametrize("text", ["", ",", "0:1:2,", "0:1:2;1:1:1", "latest"])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InvalidCursor):
        parse_token(text)


def test_d7_fences_fit_a_bigint_and_only_grow() -> None:
    last = pack((1 << 40) - 1, (1 << 15) - 1)
    assert int(fence(ordinal(255, last))) == (1 << 63) - 1
    assert fence(ordinal(0, pack(1, 2))) == str((1 << 15) + 2)
    assert int(fence(ordinal(1, 0))) > int(fence(ordinal(0, last)))


@given(positions, st.integers(0, 255))
def test_an_ordinal_is_a_position_and_the_generation_of_its_log(position: Position, generation: int) -> None:
    number = ordinal(generation, position.packed)
    assert generation_of(number) == generation
    assert unpack(position.partition, number) == position
