"""Import the names of a package from their modules on first use."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a `__getattr__` for a package that imports each name from its module.

    Args:
        package: `__name__` of the package.
        homes: Name -> the module that defines it.
    """

    def import_attribute(name: str) -> Any:
        if name in homes:
            return getattr(import_module(homes[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return import_attribute
