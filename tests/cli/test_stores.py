"""Which store a command line names, and where the URL of its server comes from."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from gatesearch.cli.options import storage_url, store_options
from gatesearch.cli.stores import NamedStore, find_store
from gatesearch.errors import DataError, UsageError
from gatesearch.store.status import StatusFile
from tests.search.tiny import tiny
from tests.store.test_status import database


def store(folder: Path, study: str, **options: str) -> Path:
    folder.mkdir(parents=True)
    if "storage" not in options:
        database(folder, study=study)
    StatusFile(folder, study=study, fingerprint="f00d", wanted=4, n_trials=4, **options)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_built_in_study_comes_first(here) -> None:
    expected = NamedStore(Path("runs/scenes"), "scenes", defined=True)
    assert find_store("scenes", None) == expected
    store(here / "runs" / "scenes", "mine")
    store(here / "scenes", "mine")
    assert find_store("scenes", None) == expected
    assert find_store("scenes", Path("x")) == NamedStore(Path("x"), "scenes", defined=True)


def test_a_file_names_the_store_of_its_study(here) -> None:
    tiny(here)
    assert find_store("tiny.toml", None) == NamedStore(Path("runs/tiny"), "tiny", defined=True)
    store(here / "runs" / "tiny.toml", "other")
    assert find_store("tiny.toml", None).study == "tiny"
    (here / "tiny.toml").unlink()
    expected = NamedStore(Path("runs/tiny.toml"), "", defined=False)
    assert find_store("tiny.toml", None) == expected


@pytest.mark.parametrize("name", ["mine", "my study", "mine.2", "-mine", "mïne", "a%20b", "a?b"])
def test_a_store_is_found_by_its_name_and_by_its_folder(here, name) -> None:
    folder = store(here / "runs" / name, "mine")
    assert find_store(name, None) == NamedStore(Path("runs") / name, "", defined=False)
    for path in (f"runs/{name}", f"./runs/{name}/", str(folder)):
        assert find_store(path, None) == NamedStore(Path(path), "", defined=False)


@pytest.mark.parametrize(
    "name", ["a:smile:b", "[red]x", "it's", "two\nlines", "bell\x07", "\x1b[31mred", "a\r", "a\tb"]
)
def test_a_printed_command_works_as_it_stands(cli, here, name) -> None:
    folder = store(here / name, "mine")
    last = cli("status", "--study", str(folder)).stdout.splitlines()[-1]
    label, command = last[:10], last[10:]
    assert (label, command.isprintable()) == ("continue: ", True)
    script = f"gatesearch() {{ printf '%s\\0' \"$@\"; }}; {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    expected = ["run", "--study", "FILE.toml", "--out", str(folder), "--n-trials", "4", ""]
    assert os.fsdecode(done.stdout).split("\0") == expected


def test_no_name_steers_the_terminal(cli) -> None:
    said = cli("report", "--study", "scenes", "--out", "a\x1b[2J\x9b\u202e:smile:").stderr
    assert said.startswith(r"gatesearch: error: no store in a\x1b[2J\x9b\u202e:smile:; run the")


def test_a_key_may_be_set_to_an_empty_value(cli) -> None:
    for arguments in (("--set", "protocol.published="), ("--set=protocol.published=",)):
        assert cli("flops", "--study", "scenes", "--method", "mtl", *arguments).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("run", "--study", "scenes", "--out", ""), "--out"),
        (("run", "--study", "scenes", "--reuse="), "--reuse"),
        (("run", "--data", "", "--study", "scenes"), "--data"),
        (("report", "--study", ""), "--study"),
        (("data", "check", "scenes", "--data="), "--data"),
    ],
)
def test_an_empty_value_is_no_name_of_this_folder(cli, here, arguments, option) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout, list(here.iterdir())) == (2, "", [])
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"gatesearch: error: {option} takes a value, found an empty one; ")


def test_with_another_folder_the_name_is_that_of_the_study() -> None:
    assert find_store("mine", Path("x")) == NamedStore(Path("x"), "mine", defined=False)


@pytest.mark.parametrize("name", ["", "mien", "runs", "no/such", "x" * 300, "\udcff"])
def test_an_unknown_name_lists_studies_and_stores(here, name) -> None:
    store(here / "runs" / "mine", "mine")
    (here / "runs" / "no store").mkdir()
    with pytest.raises(UsageError) as refused:
        find_store(name, None)
    assert "scenes, utkface-small; stores in runs: mine); a file" in str(refused.value)
    assert ("did you mean 'mine'?" in str(refused.value)) == (name == "mien")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"no study file absent\.toml"):
        find_store("absent.toml", None)


def test_status_of_a_store_by_its_name(cli, here) -> None:
    store(here / "runs" / "wide", "mine")
    told = json.loads(cli("status", "--study", "wide", "--json").stdout)
    assert (told["study"], told["trials"]["running"]) == ("mine", 0)
    assert told["command"] == "gatesearch run --study FILE.toml --out runs/wide --n-trials 4"
    assert cli("status", "--study", "runs/wide").stdout.startswith("mine: ")
    assert cli("status", "--study", "mine", "--out", "runs/wide").stdout.startswith("mine: ")
    refused = cli("status", "--study", "other", "--out", "runs/wide")
    assert refused.returncode == 2
    assert "runs/wide must hold study 'other', found 'mine'" in refused.stderr
    store(here / "runs" / "narrow", "scenes")
    told = json.loads(cli("status", "--study", "narrow", "--json").stdout)
    assert told["command"] == "gatesearch run --study scenes --out runs/narrow --n-trials 4"


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("postgresql://me@a/b", "--storage postgresql://me@a/b"),
        ("postgresql://me:***@a/b", "--storage-file FILE"),
        # as kept by gatesearch 0.1.0, and damaged
        ("postgresql://me@a/b?password=s3cret", "--storage-file FILE"),
        ("postgresql://me:s3cret", "--storage-file FILE"),
    ],
)
def test_a_store_on_a_server_names_the_server(cli, here, url, option) -> None:
    store(here / "runs" / "mine", "mine", storage=url)
    printed = cli("status", "--study", "mine", "--json").stdout
    told = json.loads(printed)
    assert told["command"].endswith(f"--out runs/mine --n-trials 4 {option}")
    assert "s3cret" not in printed
    refused = cli("report", "--study", "mine")
    assert "s3cret" not in refused.stderr
    assert refused.returncode == 2
    assert f"runs/mine has its store on a server; name it: {option}" in refused.stderr


SECRET = "postgresql://me:s3cret@server/studies"


class TestStorage:
    def written(self, here: Path, text: str, mode: int = 0o600) -> Path:
        file = here / "url"
        file.write_text(text)
        file.chmod(mode)
        return file

    @pytest.mark.parametrize("text", [SECRET, f"{SECRET}\n", f"  {SECRET} \r\n"])
    def test_a_file_holds_the_url(self, here, text, capsys) -> None:
        assert storage_url("", self.written(here, text)) == SECRET
        (here / "link").symlink_to("url")
        assert storage_url("", here / "link") == SECRET
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
    def test_a_file_that_others_can_read_is_refused(self, here, mode) -> None:
        file = self.written(here, SECRET, mode)
        with pytest.raises(DataError, match=f"found mode {mode:o}; change it: chmod 600 /"):
            storage_url("", file)

    @pytest.mark.parametrize("text", ["", "s3cret", f"{SECRET}\n{SECRET}", "sqlite:///s3cret"])
    def test_what_is_no_url_is_not_quoted(self, here, text) -> None:
        with pytest.raises(UsageError, match="--storage takes") as refused:
            storage_url("", self.written(here, text))
        assert "s3cret" not in str(refused.value)

    def test_a_missing_file_and_a_folder(self, here) -> None:
        with pytest.raises(FileNotFoundError):
            storage_url("", here / "absent")
        with pytest.raises(DataError, match="found a folder"):
            storage_url("", here)

    def test_one_of_two(self, here) -> None:
        with pytest.raises(UsageError, match="give one of them"):
            storage_url(SECRET, self.written(here, SECRET))
        assert storage_url("", None) == ""

    @pytest.mark.parametrize("url", [SECRET, "postgresql://me@server/a?password=s3cret"])
    def test_a_password_among_the_arguments_is_warned_of(self, url, capsys) -> None:
        assert storage_url(url, None) == url
        warned = capsys.readouterr().err
        assert "give a password by --storage-file, PGPASSWORD or ~/.pgpass" in warned
        assert "s3cret" not in warned
        storage_url("postgresql://me@server/a", None)
        assert capsys.readouterr().err == ""

    def test_another_command_is_given_the_same_store_and_no_secret(self) -> None:
        assert store_options("a b", None) == ["--study", "a b"]
        assert store_options("a", Path("-x"))[2:] == ["--out", "-x"]
        assert store_options("a", None, SECRET)[2:] == ["--storage-file", "FILE"]
        assert store_options("a", None, "", Path("url"))[2:] == ["--storage-file", "url"]
        assert store_options("a", None, "postgresql://a/b")[2:] == ["--storage", "postgresql://a/b"]


@pytest.mark.parametrize("command", ["run", "report", "select", "export"])
@pytest.mark.parametrize(
    "url",
    ["postgresql://me:s3cret", "postgresql://me:a@s3cret@server/b", "mysql://me:s3cret@server/b"],
)
def test_no_command_prints_a_url_that_it_refuses(cli, here, command, url) -> None:
    more = ["--to", "x.onnx"] if command == "export" else []
    done = cli(command, "--study", "scenes", "--storage", url, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--storage takes postgresql://" in done.stderr
    assert "s3cret" not in done.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--study", SECRET),
        ("run", "--study", "scenes", SECRET),
        ("run", "--study", "scenes", "--out", SECRET),
        ("run", "--study", "scenes", "--executor", SECRET),
        ("run", "--study", "scenes", "--storage", "--n-trials", SECRET),
        ("run", "--study", "scenes", "--storge", SECRET),
        ("run", "--study", "scenes", f"--storge={SECRET}"),
        ("run", "--study", "scenes", "--storage-file", SECRET),
        ("report", "--study", "scenes", "--storage", SECRET, SECRET),
        ("report", "--study", "scenes", f"--out={SECRET}"),
        ("run", "--study", "scenes", f"--reuse={SECRET}"),
        ("run", f"--study={SECRET}"),
        ("bench", f"--model={SECRET}"),
        ("run", "--study", "scenes", "--set", f"storage={SECRET}"),
        ("report", "--study", "scenes", "--out", f" {SECRET}"),
        ("report", "--study", "scenes", "--out", SECRET.upper().replace("S3CRET", "s3cret")),
        ("report", "--study", "scenes", "--out", SECRET.replace("//", "/")),
        ("report", "--study", "scenes", "--out", SECRET.replace("ql:", "ql+psycopg:")),
        (SECRET,),
    ],
)
def test_a_url_in_a_wrong_place_is_not_quoted(cli, here, arguments) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "s3cret" not in done.stderr
    assert "storage" in done.stderr
    assert list(here.iterdir()) == []


def test_no_help_shows_a_password(cli) -> None:
    for command in ("run", "report", "select", "export"):
        told = cli(command, "--help").stdout
        assert "--storage-file" in told
        assert "secret" not in told
        assert "PASSWORD@" not in told
