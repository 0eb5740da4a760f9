"""The real NYUD-v2 frames, where they are."""

import os
from pathlib import Path

import pytest

from tests.postgres import postgres_url  # noqa: F401 - a fixture of all


@pytest.fixture
def real_frames():
    """The packed NYUD-v2 frames with their `unpack.py`; GATESEARCH_NYUD_SOURCE says where."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "nyudv2"
    folder = Path(os.environ.get("GATESEARCH_NYUD_SOURCE", beside))
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"no NYUD-v2 frames at {folder}; name them with GATESEARCH_NYUD_SOURCE")
    return folder
