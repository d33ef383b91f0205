"""Finished sets survive being written down, small."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.errors import Corrupt
from penstock.engine.flow import offsets

BASE = 1 << 40


@given(st.sets(st.integers(0, 1 << 48) | st.integers(0, 3000), max_size=300), st.sampled_from([0, 7, BASE]))
def test_any_set_round_trips(positions: set[int], base: int) -> None:
    """Dense or sparse, rows or byte offsets of a huge object, in any order."""
    found = offsets.encode((base + p for p in positions), base)
    assert offsets.decode(found, base) == sorted(base + p for p in positions)


def test_dense_sets_cost_a_bit_and_sparse_ones_a_byte_or_two() -> None:
    """65,536 finished rows: 8 kB. The same number of lines of 400 bytes: 2 bytes each."""
    assert len(offsets.encode(range(1, 65_537), 0)) < 8_300
    assert len(offsets.encode(range(400, 65_536 * 400, 400), 0)) <= 2 * 65_536


@pytest.mark.parametrize("data", [b"\x99abc", b"\x02abc", b"\x08\x00"])
def test_a_damaged_set_is_refused(data: bytes) -> None:
    """Never guessed around: what is finished decides what is paid."""
    with pytest.raises(Corrupt):
        offsets.decode(data, 0)


@pytest.mark.parametrize("position", [999, 900, 0])
def test_a_position_below_the_base_is_refused(position: int) -> None:
    """Written as an offset it would wrap around, and stand for another item."""
    with pytest.raises(Corrupt):
        offsets.encode([position, 1001, 5000], 1000)
