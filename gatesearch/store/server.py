"""The URL of a PostgreSQL server: parsed, shown without secrets, and its errors explained."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote_plus

from gatesearch.errors import DataError, UsageError

if TYPE_CHECKING:
    import sqlalchemy

FORM = "postgresql://USER@HOST/DATABASE"
HIDDEN = "***"
# Parts of a URL's query that hold no secret; the value of any other is hidden.
_SHOWN = (
    "application_name",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "port",
    "sslmode",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
)
# What names of users, hosts and databases are made of. Anything else may be a piece of a password
# whose special characters were not encoded.
_NAME = r"(?a)[\w.,/:-]*"
_HOST = r"(?a)[\w.-]*|[0-9A-Fa-f:.]*"
_KEY = "[a-z_]{1,30}"
_OTHER_KINDS = ("sqlite", "mysql", "mariadb", "oracle", "mssql", "redis", "http", "https")


def server_url(url: str) -> "sqlalchemy.URL":
    """Parse the URL of a PostgreSQL server, and add the driver that we use.

    Raises:
        UsageError: Another kind of URL, or the driver is not installed. No part of a URL that
            cannot be read is quoted, since any may be a password.
    """
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # a port that is no number
        parsed = None
    if parsed is None:
        raise UsageError(f"--storage takes {FORM}, found something that cannot be read as a URL")
    kind = parsed.drivername.split("+")[0]
    if kind not in ("postgresql", "postgres"):
        known = f"{kind}://" if kind in _OTHER_KINDS else "a URL of another kind"
        raise UsageError(f"--storage takes {FORM}, found {known}")
    # A second @ would be one of the password, of which the rest was taken for the host.
    if url.count("@") > 1 or not re.fullmatch(_HOST, parsed.host or ""):
        raise UsageError(
            f"--storage takes {FORM}, found @ or another special character where the host is; in "
            "a name or password write it percent-encoded, @ as %40, or leave the password to "
            "PGPASSWORD or ~/.pgpass"
        )
    if find_spec("psycopg") is None:
        raise UsageError(
            "--storage postgresql://... needs psycopg; install it: pip install "
            "'gatesearch[postgresql]'"
        )
    return parsed.set(drivername="postgresql+psycopg")


def connection_url(url: str) -> "sqlalchemy.URL":
    """Return the URL by which the driver connects to the server of `url`, and reads texts as UTF-8.

    Otherwise a database of the encoding SQL_ASCII, which `initdb` makes where no locale is set,
    would answer in bytes.

    Raises:
        UsageError: As for `server_url`.
    """
    return server_url(url).update_query_dict({"client_encoding": "utf8"})


def shown(url: str) -> str:
    """Write the URL of a server without its secrets, for messages and files.

    Raises:
        UsageError: As for `server_url`.
    """
    parsed = server_url(url)
    name = f"{_shown_name(parsed.username)}@" if parsed.username else ""
    if parsed.password is not None:
        name = f"{name.removesuffix('@')}:{HIDDEN}@"
    host = parsed.host or ""
    place = f"[{host}]" if ":" in host else host
    port = "" if parsed.port is None else f":{parsed.port}"
    items = [
        f"{key if re.fullmatch(_KEY, key) else HIDDEN}={value if _is_shown(key, value) else HIDDEN}"
        for key, values in parsed.normalized_query.items()
        for value in values
    ]
    query = f"?{'&'.join(items)}" if items else ""
    return f"postgresql://{name}{place}{port}/{_shown_name(parsed.database or '')}{query}"


def masked(url: str) -> str:
    """Write a URL that was kept in a file without its secrets: `***` if it cannot be read."""
    try:
        return shown(url) if url else ""
    except UsageError:
        return HIDDEN


def hides_something(shown_url: str) -> bool:
    """Tell whether `shown` left out a secret, so that its text cannot be used as a URL."""
    return HIDDEN in shown_url


def without_secrets(text: str, url: str) -> str:
    """Hide every secret of a URL in a text, such as a message of a driver, and make it one line."""
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return " ".join(text.split())


def unreachable(url: str, reason: object) -> DataError:
    """Make the error for a server that does not answer, or not any more."""
    return DataError(
        f"cannot use the server {shown(url)}: {without_secrets(str(reason), url)}; what is "
        "finished is kept. Start the server or mend its URL, then run the same command again"
    )


def _is_name(value: str) -> bool:
    return re.fullmatch(_NAME, value) is not None


def _is_shown(key: str, value: str) -> bool:
    return key in _SHOWN and _is_name(value)


def _shown_name(value: str) -> str:
    return quote(value, safe="") if _is_name(value) else HIDDEN


def _secrets(url: str) -> set[str]:
    """List what `shown` hides, as it is written in the URL, decoded, and encoded."""
    parsed = server_url(url)
    values = [str(parsed.password or ""), parsed.username or "", parsed.database or ""]
    secrets = {value for value in values[1:] if not _is_name(value)} | {values[0]}
    for key, items in parsed.normalized_query.items():
        secrets |= {item for item in items if not _is_shown(key, item)}
    secrets |= {url, *(word for word in re.split(r"[:@?&=]", url) if unquote_plus(word) in secrets)}
    return {form for s in secrets if s for form in (s, quote(s, safe=""), quote_plus(s))}
