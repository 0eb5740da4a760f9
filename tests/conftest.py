"""What all tests share: the quick part, rendered frames, the real NYUD-v2 frames, a server."""

import os
from pathlib import Path

# Before torch is imported: tests compute little, and share the cores with other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.forks import ROOT
from tests.postgres import postgres, postgres_url  # noqa: F401 - fixtures of all


def pytest_configure(config: pytest.Config) -> None:
    """Let workers of pytest-xdist take files in the order of collection."""
    config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave whole runs out of the quick part, `-m "not slow"`; begin with files that take long.

    Otherwise a worker would begin with one at the very end, when the others have nothing left.
    """
    ranks: dict[Path, int] = {}
    for item in items:
        whole_run = item.get_closest_marker("end_to_end") is not None
        if whole_run:
            item.add_marker(pytest.mark.slow("whole run"))
        rank = 0 if whole_run else 1 if item.get_closest_marker("slow") is not None else 2
        ranks[item.path] = min(rank, ranks.get(item.path, 2))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packs, in which rendered frames are made once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def real_frames() -> Path:
    """The packed NYUD-v2 frames with their `unpack.py`; GATESEARCH_NYUD_SOURCE says where."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "nyudv2"
    folder = Path(os.environ.get("GATESEARCH_NYUD_SOURCE", beside))
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"no NYUD-v2 frames at {folder}; name them with GATESEARCH_NYUD_SOURCE")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the processes: one thread, this checkout, and compiled modules kept between them."""
    kept = {name: value for name, value in os.environ.items() if name != "GATESEARCH_DATA"}
    if kept.pop("PYTHONDONTWRITEBYTECODE", None):
        kept["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
