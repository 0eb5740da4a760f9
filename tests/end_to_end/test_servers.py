"""A store on a PostgreSQL server: that is lost, and that wants a password."""

import json
import shlex

import psycopg
import pytest

from tests.end_to_end.conftest import ARGUMENTS, TINY, TRIALS, outcome

pytestmark = pytest.mark.end_to_end


def test_a_server_that_is_lost_is_named_and_the_run_goes_on_when_it_is_back(
    tiny, cli, postgres, expected
) -> None:
    run = (*ARGUMENTS, "--data", tiny / "data", "--storage", postgres.url, "--json")
    running = cli.start(*run)
    running.wait_for("trial 1: lambda_s")
    postgres.stop()
    done = running.end()
    assert done.code == 3, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"gatesearch: error: cannot use the server {postgres.url}: ")
    assert last.endswith("Start the server or mend its URL, then run the same command again")
    for word in ("Traceback", "backup", "study.db", "[SQL"):
        assert word not in done.stderr
    for verb in (run, ("report", "--study", "tiny", "--storage", postgres.url)):
        refused = cli(*verb).refused(3)
        assert f"cannot use the server {postgres.url}: " in refused
        assert len([line for line in refused.splitlines() if "error" in line]) == 1
    postgres.start()
    done = cli(*run)
    assert done.json["trials"] == {"complete": TRIALS, "failed": 0, "pruned": 0}, done.stderr
    store = cli.folder / "runs" / "tiny"
    assert outcome(store, storage=postgres.url, name="tiny") == expected


def test_a_password_in_each_form(tiny, cli, postgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE guarded LOGIN PASSWORD 's3/cr@t' SUPERUSER")
    host = f"host={postgres.socket}"
    plain = f"postgresql://guarded@/postgres?{host}"
    passwords = cli.folder / "pass file"
    passwords.write_text("*:*:*:guarded:s3/cr@t\n")
    passwords.chmod(0o600)
    whole = cli.folder / "url"
    whole.write_text(f"postgresql://guarded:s3%2Fcr%40t@/postgres?{host}\n")
    whole.chmod(0o600)
    run = ("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 0, "--methods", "stl")
    forms = {
        "PGPASSWORD": (("--storage", plain), {"PGPASSWORD": "s3/cr@t"}),
        "PGPASSFILE": (("--storage", plain), {"PGPASSFILE": str(passwords)}),
        "file": (("--storage-file", whole), {}),
        "URL": (("--storage", whole.read_text().strip()), {}),
        "passfile": (("--storage", f"{plain}&passfile={passwords}"), {}),
    }
    before = dict(cli.environment)
    for name, (options, variables) in forms.items():
        cli.environment = {**before, **variables}
        done = cli(*run, *options, "--json")
        assert done.code == 0, (name, done.stderr)
        seen = done.stdout + done.stderr
        assert ("in the list of processes" in seen) == (name in ("URL", "passfile"))
        files = [path for path in (cli.folder / "runs").rglob("*") if path.is_file()]
        kept = b"".join(path.read_bytes() for path in files)
        for secret in ("s3/cr@t", "s3%2Fcr%40t", "pass file"):
            assert secret not in seen
            assert secret.encode() not in kept
        command = json.loads(cli("status", "--study", "tiny", "--json").stdout)["command"]
        options = ["--storage", plain] if name.startswith("PG") else ["--storage-file", "FILE"]
        assert shlex.split(command)[-2:] == options
    cli.environment = before
    for options in (
        forms["PGPASSWORD"][0],
        ("--storage", plain.replace("guarded", "guarded:wr0ng")),
    ):
        said = cli(*run, *options).refused(3)
        assert "cannot use the server postgresql://guarded" in said
        assert "wr0ng" not in said
