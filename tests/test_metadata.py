"""What installers read: the version, and the extras that messages and documents advise."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """The package as a wheel, and empty wheels in place of what it requires."""
    folder = tmp_path_factory.mktemp("wheels")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build, "-w", str(folder)], check=True)
    for line in [*PROJECT["project"]["dependencies"], *(x for xs in EXTRAS.values() for x in xs)]:
        required = Requirement(line)
        name = required.name.replace("-", "_")
        if name == "gatesearch":
            continue
        (version,) = [item.version for item in required.specifier] or ["1"]
        described = f"Metadata-Version: 2.1\nName: {required.name}\nVersion: {version}\n"
        described += "".join(f"Provides-Extra: {extra}\n" for extra in required.extras)
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            info = f"{name}-{version}.dist-info"
            wheel.writestr(f"{info}/METADATA", described)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def pip(tmp_path_factory) -> list[str]:
    """The pip that Python brings, in an environment of its own."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    return [python, "-m", "pip", "--disable-pip-version-check", "--isolated"]


@pytest.mark.slow("resolves what pip would install")
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_found_by_the_pip_that_python_brings(extra, wheels, pip) -> None:
    install = [*pip, "install", "-q", "--no-index", "--find-links", wheels]
    install += ["--dry-run", "--report", "-", f"gatesearch[{extra}]"]
    done = subprocess.run(install, capture_output=True, text=True, check=True)
    found = {item["metadata"]["name"] for item in json.loads(done.stdout)["install"]}
    others = EXTRAS[extra] if extra != "dev" else [x for xs in EXTRAS.values() for x in xs]
    assert {Requirement(line).name for line in others} <= found


@pytest.mark.slow("installs")
def test_the_extra_for_development_is_installed(wheels, pip) -> None:
    install = [*pip, "install", "-q", "--no-index", "--find-links", wheels, "gatesearch[dev]"]
    subprocess.run(install, check=True)
    done = subprocess.run(
        [*pip, "list", "--format=json"], capture_output=True, text=True, check=True
    )
    installed = {item["name"].lower() for item in json.loads(done.stdout)}
    assert {Requirement(line).name for line in EXTRAS["dev"]} <= installed
