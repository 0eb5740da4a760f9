import pytest

from tests.datasets.toys import write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "toy-5")
