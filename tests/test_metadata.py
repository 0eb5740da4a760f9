"""What installers read: the version, and the extras that messages and documents advise."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gatesearch
from gatesearch.version import version_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def advised() -> dict[str, str]:
    """Each extra that code, studies or documents name as `gatesearch[a,b]` -> one such file."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml"]
    for folder, pattern in (("gatesearch", "*.py"), ("docs", "*.md"), ("studies", "*.toml")):
        files += (ROOT / folder).rglob(pattern)
    return {
        name.strip(): str(file.relative_to(ROOT))
        for file in files
        for names in re.findall(r"gatesearch\[([^]\n]*)\]", file.read_text(encoding="utf-8"))
        for name in names.split(",")
    }


def test_every_advised_extra_is_one() -> None:
    names = advised()
    assert {"onnx", "distributed", "postgresql", "ray", "efficientnet", "weightings"} <= set(names)
    assert {name: file for name, file in names.items() if name not in EXTRAS} == {}


def test_names_of_extras_are_plain_words() -> None:
    """Builders rewrite `_`, `.` and capitals; the pip of Python 3.11 does not find them then."""
    assert [name for name in EXTRAS if not re.fullmatch("[a-z]+", name)] == []


def test_the_extra_for_development_holds_all_others() -> None:
    (own,) = (line for line in EXTRAS["dev"] if line.startswith("gatesearch["))
    assert set(re.split(r"[\[\],]", own)[1:-1]) == set(EXTRAS) - {"dev"}


def test_the_version_is_read_from_the_code_alone() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    path = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'\n__version__ = "{gatesearch.__version__}"\n' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("record", ["none", "without a version"])
def test_a_package_without_a_record_has_an_unknown_version(monkeypatch, record) -> None:
    def version(name: str) -> None:
        if record == "none":
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert version_of("torch") == "unknown"
    monkeypatch.undo()
    assert version_of("torch") == importlib.metadata.version("torch")


def test_a_source_tree_knows_its_version_where_nothing_is_installed() -> None:
    code = """
import importlib.metadata
def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = importlib.metadata.distribution = missing
import gatesearch
print(gatesearch.__version__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == (f"{gatesearch.__version__}\n", "")
