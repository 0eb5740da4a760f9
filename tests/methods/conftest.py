"""The method of `two_phases.py` beside those of the package."""

from collections.abc import Iterator

import pytest

from gatesearch.methods import METHODS
from tests.methods.two_phases import TWO_PHASES


@pytest.fixture(autouse=True, scope="module")
def _two_phases_is_a_method() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "two_phases", TWO_PHASES)
        yield
