"""Gate patterns as text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatesearch.pruning import pattern_as_text, pattern_of_text


@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_every_pattern_is_read_as_it_was_written(channels, tasks, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    gates = {"stem": torch.rand(tasks, channels, generator=draw) > 0.5}
    text = pattern_as_text(gates)
    assert {len(digits) for digits in text["stem"]} == {-(-channels // 4)}
    again = pattern_of_text(text, {"stem": channels})
    assert torch.equal(again["stem"], gates["stem"])


def test_a_pattern_of_another_network_is_refused() -> None:
    text = pattern_as_text({"stem": torch.ones(1, 8, dtype=torch.bool)})
    with pytest.raises(ValueError, match="must have the nodes conv1, found stem"):
        pattern_of_text(text, {"conv1": 8})
    with pytest.raises(ValueError, match="must have 4 channels, found 8"):
        pattern_of_text(text, {"stem": 4})
