"""What is refused: the exit code, the reason, the cure, and nothing changed."""

import os
import shutil
import subprocess
import tomllib
import zipfile

import pytest

from tests.end_to_end.conftest import ROOT, TINY, CommandLine, contents, obey_modes
from tests.store.test_upgrade import ZIP as OLD_STORE

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--study", "scene"), "unknown study 'scene'; did you mean 'scenes'?"),
        (("--study", TINY, "--set", "training.epoch=1"), "did you mean 'epochs'?"),
        (
            ("--study", TINY, "--methods", "stl,mtann"),
            "unknown method 'mtann'; did you mean 'mtan'",
        ),
        (
            ("--study", TINY, "--weightings", "uniform,pcgard"),
            "unknown weighting 'pcgard'; did you mean 'pcgrad'",
        ),
        (("--study", TINY, "--set", "data.dataset=scene"), "did you mean 'scenes'?"),
        (("--study", TINY, "--n-trials", "many"), "--n-trials"),
        (("--sutdy", TINY), "--study"),
    ],
)
def test_wrong_use_names_what_was_probably_meant(cli, arguments, said):
    assert said in cli("run", *arguments).refused(2)
    assert list(cli.folder.iterdir()) == []


def test_another_definition_is_refused_with_what_differs(own_tiny, cli):
    before = contents(own_tiny)
    said = cli("run", "--study", TINY, "--set", "training.lr=0.5", "--n-trials", 4).refused(4)
    assert "training.lr: 0.002 -> 0.5" in said
    assert said.count("->") == 2  # the heading's and that line's
    assert "--out" in said
    assert contents(own_tiny) == before


@pytest.mark.parametrize(
    ("verb", "damage", "what"),
    [
        ("run", lambda whole: os.urandom(len(whole)), "file is not a database"),
        ("report", lambda whole: whole[: len(whole) // 2], "malformed"),
        ("report", lambda whole: b"", "it is empty"),
    ],
    ids=["garbage", "cut short", "empty"],
)
def test_a_damaged_store_is_refused_and_left_as_it_is(own_tiny, cli, verb, damage, what):
    database = own_tiny / "runs" / "tiny" / "study.db"
    database.write_bytes(damage(database.read_bytes()))
    before = contents(own_tiny)
    said = cli(verb, "--study", TINY).refused(4)
    assert "study.db is damaged (" in said
    assert what in said
    assert "was left as it is; `gatesearch status`" in said
    assert contents(own_tiny) == before


def test_absent_frames_are_told_where_to_get_and_how_to_prepare(cli):
    said = cli("run", "--study", "nyud-small", "--data", "frames").refused(3)
    assert "gatesearch data prepare nyud --source PATH --data frames" in said
    assert "NYUD_MT.tgz" in said


def test_a_store_that_cannot_be_made(cli):
    (cli.folder / "file").write_text("")
    said = cli("run", "--study", TINY, "--out", "file/below").refused(3)
    assert "cannot write file/below: Not a directory; name another folder with --out" in said


@pytest.fixture
def read_only(own_tiny):
    """A store that nobody may write, not even root."""
    try:
        subprocess.run(["true"], preexec_fn=obey_modes, check=True)
    except subprocess.SubprocessError:
        pytest.skip("root cannot give up its right to write anywhere here")
    store = own_tiny / "runs" / "tiny"
    paths = [store, *store.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield store
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_read_only_store_is_read_and_not_written(read_only, cli):
    before = contents(read_only)
    told = cli("status", "--study", TINY, "--json", bound_by_modes=True)
    assert told.json["trials"]["complete"] == 3, told.stderr
    done = cli("report", "--study", TINY, "--reports", "new", bound_by_modes=True)
    assert done.code == 0, done.stderr
    assert (cli.folder / "new" / "tiny.pdf").is_file()
    said = cli("run", "--study", TINY, "--n-trials", 4, bound_by_modes=True).refused(3)
    assert "cannot write" in said
    assert "runs/tiny" in said
    assert contents(read_only) == before


def test_a_read_only_store_of_another_version_is_left_and_its_cure_told(cli):
    zipfile.ZipFile(OLD_STORE).extractall(cli.folder)
    store = cli.folder / "runs" / "tiny"
    before = contents(cli.folder)
    store.chmod(0o555)
    said = cli("report", "--study", "tiny.toml", bound_by_modes=True).refused(3)
    store.chmod(0o755)
    assert "is a store of gatesearch 0.1.0, which this version must rewrite once" in said
    assert "copy it to where it can be written" in said
    assert contents(cli.folder) == before
    assert cli("report", "--study", "tiny.toml", bound_by_modes=True).code == 0


def test_built_in_studies_are_found_outside_a_checkout(tmp_path, environment):
    """The files as the wheel lays them out, by the build's own table."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    ignore = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=ignore)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target)
    elsewhere.mkdir()
    outside = CommandLine(elsewhere, {**environment, "PYTHONPATH": str(site)})
    done = outside("studies", fresh=True)
    assert done.code == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {path.stem for path in (ROOT / "studies").glob("*.toml")} <= listed
