"""URLs of servers: what is read, what is refused, and that no secret is ever shown."""

import psycopg
import pytest
import sqlalchemy

from gatesearch.errors import DataError, StudyRefusedError, UsageError
from gatesearch.store.database import explained, open_database
from gatesearch.store.lock import advisory_lock
from gatesearch.store.opening import open_store, read_store
from gatesearch.store.server import (
    hides_something,
    masked,
    server_url,
    shown,
    unreachable,
    without_secrets,
)
from tests.search.tiny import tiny
from tests.store.test_store import TASKS

SHOWN = {
    "postgresql://server/studies": "postgresql://server/studies",
    "postgres://me@server:5433/a-b_c.d": "postgresql://me@server:5433/a-b_c.d",
    "postgresql+psycopg://server/studies": "postgresql://server/studies",
    "postgresql://me@[::1]:5433/studies": "postgresql://me@[::1]:5433/studies",
    "postgresql://me@/studies?host=/tmp/pg&port=5433": (
        "postgresql://me@/studies?host=/tmp/pg&port=5433"
    ),
    "postgresql://a/b?host=c:1&host=d:2&sslmode=require": (
        "postgresql://a/b?host=c:1&host=d:2&sslmode=require"
    ),
    # of the password's place
    "postgresql://me:s3cret@server/studies": "postgresql://me:***@server/studies",
    "postgresql://me:@server/studies": "postgresql://me:***@server/studies",
    "postgresql://:s3cret@server/studies": "postgresql://:***@server/studies",
    "postgresql://me:s3cret%40%2F@server/studies": "postgresql://me:***@server/studies",
    "postgresql://me:s3cret/?#&@server/studies": "postgresql://me:***@server/studies",
    # of the query
    "postgresql://me@server/b?password=s3cret": "postgresql://me@server/b?password=***",
    "postgresql://me@server/b?pass%77ord=s3cret": "postgresql://me@server/b?password=***",
    "postgresql://me@server/b?PASSWORD=s3cret": "postgresql://me@server/b?***=***",
    "postgresql://me@server/b?s3cret=s3cret": "postgresql://me@server/b?***=***",
    "postgresql://server/b?passfile=/home/s3cret": "postgresql://server/b?passfile=***",
    "postgresql://server/b?sslpassword=s3cret&sslmode=require": (
        "postgresql://server/b?sslpassword=***&sslmode=require"
    ),
    "postgresql://server/b?password=s3cret&password=s3cret2": (
        "postgresql://server/b?password=***&password=***"
    ),
    "postgresql://server/b?options=-c%20x%3Ds3cret": "postgresql://server/b?options=***",
    "postgresql://server/b?sslmode=s3cret%40": "postgresql://server/b?sslmode=***",
    # of places where one does not belong
    "postgresql://server/b%20password%3Ds3cret": "postgresql://server/***",
    "postgresql://me%3As3cret%40@server/b": "postgresql://***@server/b",
}


@pytest.mark.parametrize("url", SHOWN)
def test_a_url_is_shown_without_secrets(url) -> None:
    assert shown(url) == SHOWN[url]
    assert hides_something(SHOWN[url]) == ("***" in SHOWN[url])


@pytest.mark.parametrize("url", SHOWN)
def test_what_was_masked_stays_as_it_is(url) -> None:
    assert masked(masked(url)) == masked(url) == SHOWN[url]


def test_a_url_that_cannot_be_read_is_masked_whole() -> None:
    assert masked("postgresql://me:s3cret") == "***"
    assert masked("") == ""


@pytest.mark.parametrize("url", [url for url in SHOWN if "***" not in SHOWN[url]])
def test_a_url_without_secrets_is_shown_as_one_that_is_equal(url) -> None:
    assert server_url(SHOWN[url]) == server_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "server",
        "s3cret",
        "s3cret://me@server/studies",
        "me:s3cret@server/studies",
        "postgresql:/me:s3cret@server/studies",
        "postgresql//me:s3cret@server/studies",
        "postgresql://me:s3cret",
        "postgresql://me:s3cret/studies",
        "postgresql://me@server:s3cret/studies",
        "postgresql://me:first@s3cret@server/studies",
        "postgresql://me:first@s3cret/more@server/studies",
        "postgresql://me:first@s3cret?more@server/studies",
        "postgresql://me:first@s3cret#more",
        "postgresql://me:first@s3cret server/studies",
        "postgresql://[s3cret/studies",
        "sqlite:///s3cret.db",
        "mysql://me:s3cret@server/studies",
        "mysql://me@server/studies?password=s3cret",
        "host=server user=me password=s3cret",
    ],
)
def test_what_is_refused_is_not_quoted(url) -> None:
    with pytest.raises(UsageError) as refused:
        shown(url)
    text = str(refused.value)
    assert text.startswith("--storage takes postgresql://USER@HOST/DATABASE, found ")
    assert "s3cret" not in text
    assert refused.value.__context__ is None
    assert refused.value.code == 2


def test_the_kind_of_another_database_is_named() -> None:
    with pytest.raises(UsageError, match="found sqlite://"):
        server_url("sqlite:///study.db")


def test_a_missing_driver_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr("gatesearch.store.server.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'gatesearch\[postgresql\]'"):
        server_url("postgresql://localhost/optuna")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:s%33cret%40@a/b", "of s3cret@ and\n\ts3cret%40 and s%33cret%40"),
        ("postgresql://a/b?password=s3+cret", "of s3 cret and s3%20cret and s3+cret"),
        ("postgresql://me:s3cret@a/b", "of postgresql://me:s3cret@a/b and s3cret and s3cret"),
    ],
)
def test_messages_that_quote_a_secret_are_masked(url, message) -> None:
    assert without_secrets(message, url) == "of *** and *** and ***"


def test_a_lost_server_is_named_with_what_its_driver_said() -> None:
    error = unreachable("postgresql://me:s3cret@a/b", "no\nroute for s3cret")
    assert str(error) == (
        "cannot use the server postgresql://me:***@a/b: no route for ***; what is finished is "
        "kept. Start the server or mend its URL, then run the same command again"
    )


def wrapped(original: Exception) -> Exception:
    return sqlalchemy.exc.DBAPIError.instance("SELECT 1", (), original, psycopg.Error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (wrapped(psycopg.OperationalError("server closed the connection")), DataError),
        (wrapped(psycopg.errors.AdminShutdown("terminating connection")), DataError),
        (wrapped(psycopg.errors.DiskFull("no space")), DataError),
        (wrapped(psycopg.InterfaceError("the connection is closed")), DataError),
        (sqlalchemy.exc.PendingRollbackError("can't reconnect"), DataError),
        (wrapped(psycopg.errors.InsufficientPrivilege("not yours")), StudyRefusedError),
        (wrapped(psycopg.errors.UndefinedTable("no table")), StudyRefusedError),
    ],
)
def test_errors_of_a_server_name_it_and_no_file(tmp_path, error, kind) -> None:
    with pytest.raises(kind) as caught, explained(tmp_path, "postgresql://me:s3cret@a/b"):
        raise error
    text = str(caught.value)
    assert "postgresql://me:***@a/b" in text
    assert "s3cret" not in text
    assert "backup" not in text
    assert "study.db" not in text
    assert "\n" not in text


def test_a_database_without_an_encoding_keeps_a_store(tmp_path, postgres_url) -> None:
    """As `initdb` makes it where no locale is set."""
    with psycopg.connect(postgres_url, autocommit=True, client_encoding="utf8") as connection:
        connection.execute("CREATE DATABASE plain TEMPLATE template0 ENCODING 'SQL_ASCII'")
    url = postgres_url.replace("/postgres?", "/plain?")
    study = tiny(tmp_path).model_copy(update={"summary": "Δ"})
    with advisory_lock(url, study.name):
        store = open_store(study, folder=tmp_path / "out", tasks=TASKS, storage=url)
        store.keep("note", "Δ")
        store.close()
    record = read_store(tmp_path / "out", storage=url, name=study.name)
    assert (record.name, record.tasks) == (study.name, TASKS)
    again = open_store(study, folder=tmp_path / "out", tasks=TASKS, storage=url)
    assert again.attribute("note") == "Δ"
    again.close()


def test_a_key_of_the_url_that_there_is_none_of_is_no_fault_of_the_server(tmp_path) -> None:
    url = "postgresql://me@127.0.0.1:1/a?passwd=s3cret"
    with pytest.raises(DataError, match="mend its URL") as refused, explained(tmp_path, url):
        open_database(tmp_path, url)
    assert 'invalid connection option "passwd"' in str(refused.value)
    assert "s3cret" not in str(refused.value)
