"""Items at even distances: how many, which, and how far apart."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.datasets.spread import spread_evenly


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), wanted=st.integers(0, 400))
def test_spread_is_even(count, wanted) -> None:
    rows = spread_evenly(range(count), wanted)
    assert len(rows) == (count if wanted == 0 else min(count, wanted))
    assert rows[0] == 0
    assert rows[-1] < count
    gaps = {b - a for a, b in pairwise(rows)}
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    assert 0 not in gaps


def test_fewer_items_than_are_wanted_are_all_taken() -> None:
    assert spread_evenly("ab", 4) == ["a", "b"]
