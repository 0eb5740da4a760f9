"""The version of this code, and those of packages that it runs with."""

# pyproject.toml reads it from here, so that code that was never installed knows it too.
__version__ = "0.1.0"


def version_of(package: str) -> str:
    """Look up the version of another package; `unknown` where its installer recorded none.

    >>> version_of("no-such-package")
    'unknown'
    """
    # Imported where it is needed: it takes a fifth of the time of `gatesearch --help`.
    import importlib.metadata

    try:
        found: str | None = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    return found or "unknown"  # its record may be there without a version
